"""When a run stops early: on a signal, or when the held-out loss no longer falls."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any

from rlhf_cli.console import logger
from rlhf_cli.distributed.ranks import Ranks

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C; the end of a job; Slurm's and submitit's warning before the time limit."""


class StopRequest:
    """Whether a signal asked the run to stop."""

    def __init__(self) -> None:
        self.name = ""

    def agreed(self, ranks: Ranks) -> str:
        """Name of the signal that any rank received, or an empty string; the same on all ranks.

        A signal that arrives later counts at the next call.
        """
        own = self.name
        return next(filter(None, ranks.all_gather_json(own))) if ranks.any(bool(own)) else ""

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal; the second one stops the run at once."""
        if self.name:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        logger.info(
            f"\n{self.name}: finishing the step and writing a checkpoint; once more stops at once"
        )


@contextmanager
def stop_on_request() -> Iterator[StopRequest]:
    """Turn a signal of `SIGNALS` into a request that the loop checks between two steps."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may set handlers
        return
    before = [signal.signal(number, request.handle) for number in SIGNALS]
    try:
        yield request
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


@dataclass
class BestEvaluation:
    """The evaluation with the lowest held-out loss.

    Attributes:
        step: step after which it was made; 0 is before the first step.
        values: its metrics; empty before the first evaluation.
        waited: number of evaluations since then.
    """

    step: int = 0
    values: dict[str, float] = field(default_factory=dict)
    waited: int = 0

    def update(self, step: int, values: dict[str, float]) -> bool:
        """Record an evaluation, and return whether it is the best so far; NaN never is."""
        if not self.values or values["loss"] < self.values["loss"]:
            self.step, self.values, self.waited = step, values, 0
            return True
        self.waited += 1
        return False

    def state_dict(self) -> dict[str, Any]:
        """State as JSON values, for a checkpoint."""
        return asdict(self)
