"""Stop on request: finish the step, write a checkpoint, then end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rlhf_cli.console import logger
from rlhf_cli.distributed import Ranks

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether somebody asked the run to stop."""

    def __init__(self) -> None:
        self.name = ""

    def agreed(self, ranks: Ranks) -> str:
        """The signal that some rank got, or nothing: the same on all, so that all stop together.

        A signal that comes later counts at the next call.
        """
        own = self.name
        return next(filter(None, ranks.all_gather_json(own))) if ranks.any(bool(own)) else ""

    def note(self, number: int, frame: FrameType | None) -> None:
        """Signal handler; the second request does not wait for the step."""
        if self.name:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        logger.info(
            f"\n{self.name}: finishing the step and writing a checkpoint; once more stops at once"
        )


@contextmanager
def stop_on_request() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request that the loop reads between two steps."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may set handlers
        return
    before = [signal.signal(number, request.note) for number in SIGNALS]
    try:
        yield request
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
