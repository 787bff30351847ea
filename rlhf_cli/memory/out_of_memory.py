"""The message of an out-of-memory error: phase, rows, estimate beside what was measured, advice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from rlhf_cli.errors import OutOfMemory, RlhfError, translate
from rlhf_cli.memory.advice import Override, cheapest_overrides
from rlhf_cli.memory.device import find_device
from rlhf_cli.memory.estimate import Rows, estimate_memory
from rlhf_cli.memory.phase import RECORD
from rlhf_cli.memory.table import format_bytes, format_estimate


@contextlib.contextmanager
def explained(command: str, cfg: Any, processes: int = 1) -> Iterator[None]:
    """Explain an out-of-memory error inside the context, of any library.

    Args:
        command: a training stage, `generate`, `evaluate` or another.
        cfg: its checked config.
        processes: of the run.

    Raises:
        OutOfMemory: names the phase, the rows in flight, the estimate and what needs less.
    """
    try:
        yield
    except Exception as error:
        known = translate(error)
        if not isinstance(known, OutOfMemory) or isinstance(error, OutOfMemory):
            raise
        error.__traceback__ = None  # its frames hold what filled the memory
        raise OutOfMemory(explain(str(known), command, cfg, processes)) from None


def explain(reason: str, command: str, cfg: Any, processes: int = 1) -> str:
    """Build the message of an out-of-memory error.

    Args:
        reason: first line of the library's message.
        command: of the run.
        cfg: its checked config.
        processes: of the run.
    """
    lines = [f"{_place()}{reason}"]
    measured = dict(RECORD.peaks)
    try:
        device = find_device(getattr(cfg, "device_memory", ""))
        rows = RECORD.rows or Rows.of_config(cfg)
        estimate = estimate_memory(command, cfg, rows, device, processes=processes)
        lines += format_estimate(estimate, device, measured).split("\n")
        lines += advice_lines(cheapest_overrides(command, cfg, rows, device, processes=processes))
    except (RlhfError, AttributeError, MemoryError):  # a command or a model without an estimate
        lines += [f"measured: {name} {format_bytes(size)}" for name, size in measured.items()]
    return "\n".join(lines)


def advice_lines(overrides: list[Override]) -> list[str]:
    """A line for each override: what it saves and costs, and whether it is enough."""
    return [
        f"Try {one.text}: saves {format_bytes(one.saves_bytes)}; {one.cost}"
        + ("" if one.fits else "; not enough alone")
        for one in overrides
    ]


def _place() -> str:
    phase = RECORD.failed or RECORD.phase
    rows, tokens = RECORD.in_flight
    if not phase:
        return ""
    work = f", {rows} rows of {tokens} tokens in flight" if tokens else ""
    return f"out of memory in phase {phase}{work}: "
