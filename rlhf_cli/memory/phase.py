"""The phase that a run is in, and the measured peak of each phase.

A module-level record, because an out-of-memory error can come from anywhere, and its message has to
say where. Torch is not imported: the code that knows the device gives the functions that read it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


def read_status(name: str) -> int:
    """Read a size of this process in bytes from /proc: `VmRSS`, `VmHWM`; 0 where there is none."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            for line in file:
                if line.startswith(f"{name}:"):
                    return int(line.split()[1]) << 10
    except (OSError, ValueError):
        pass
    return 0


def reset_peak() -> None:
    """Set the peak of this process's memory to what it holds now, where Linux allows it."""
    with contextlib.suppress(OSError):
        handle = os.open("/proc/self/clear_refs", os.O_WRONLY)
        try:
            os.write(handle, b"5")
        finally:
            os.close(handle)


@dataclass
class Meter:
    """Measures the memory of phases.

    Attributes:
        phase: that the run is in; empty outside of all.
        work: what is computed, as in `17 rows of 3,912 tokens`.
        peaks: phase -> largest bytes.
        read_peak: reads the peak since the last reset.
        reset: sets the peak to what is held now.
    """

    phase: str = ""
    work: str = ""
    peaks: dict[str, int] = field(default_factory=dict)
    read_peak: Callable[[], int] = lambda: read_status("VmHWM")
    reset: Callable[[], None] = reset_peak

    def record(self) -> None:
        """Add what was reached since the last reset to the current phase."""
        peak = self.read_peak()
        if self.phase:
            self.peaks[self.phase] = max(peak, self.peaks.get(self.phase, 0))
        self.highest = max(self.highest, peak)
        self.reset()

    highest: int = 0
    """Largest bytes of the whole run."""


METER = Meter()


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Measure what happens inside the context as a phase; an error leaves its name behind."""
    METER.record()
    before, METER.phase = METER.phase, name
    yield
    METER.record()
    METER.phase = before
