"""The phase that a run is in, and the measured peak of each phase.

A record of the process, because an out-of-memory error can come from anywhere, and its message has
to say where. Torch is not imported: the code that knows a GPU gives the functions that read it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlhf_cli.memory.parts import Rows


def read_status(name: str) -> int:
    """Read a size of this process in bytes from /proc: `VmRSS` or `VmHWM`.

    Where there is none, as on macOS, it is the peak of the whole process.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            for line in file:
                if line.startswith(f"{name}:"):
                    return int(line.split()[1]) << 10
    except (OSError, ValueError):
        pass
    unit = 1 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_process_peak() -> None:
    """Set the peak of this process's memory to what it holds now, where Linux allows it."""
    with contextlib.suppress(OSError):
        handle = os.open("/proc/self/clear_refs", os.O_WRONLY)
        try:
            os.write(handle, b"5")
        finally:
            os.close(handle)


@dataclass
class PhaseRecord:
    """Phases of this process and their measured peaks.

    Attributes:
        phase: that the process is in; empty outside of all.
        failed: innermost phase that an exception has left, until another phase begins.
        in_flight: rows and tokens of the last forward pass that began.
        rows: lengths of the training rows, once they are known.
        peaks: phase -> largest bytes.
        highest: largest bytes of all.
        read_peak: reads the peak since the last reset.
        reset_peak: sets the peak to what is held now.
    """

    phase: str = ""
    failed: str = ""
    in_flight: tuple[int, int] = (0, 0)
    rows: Rows | None = None
    peaks: dict[str, int] = field(default_factory=dict)
    highest: int = 0
    read_peak: Callable[[], int] = lambda: read_status("VmHWM")
    reset_peak: Callable[[], None] = reset_process_peak

    def measure(self) -> int:
        """Add the peak since the last call to the phase; return the largest of all."""
        peak = self.read_peak()
        self.highest = max(self.highest, peak)
        if self.phase:
            self.peaks[self.phase] = max(peak, self.peaks.get(self.phase, 0))
        self.reset_peak()
        return self.highest

    def enter(self, name: str) -> None:
        """Begin or continue a phase; an empty name is none."""
        self.measure()
        self.phase = name

    def start(
        self,
        read_peak: Callable[[], int] | None = None,
        reset_peak: Callable[[], None] | None = None,
    ) -> None:
        """Begin anew with a run, whose memory is read by these functions; by default from /proc."""
        plain = PhaseRecord()
        self.read_peak = read_peak or plain.read_peak
        self.reset_peak = reset_peak or plain.reset_peak
        self.peaks, self.highest, self.rows = {}, 0, None
        self.phase, self.failed, self.in_flight = "", "", (0, 0)
        self.reset_peak()


RECORD = PhaseRecord()


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Measure what happens inside the context as a phase, and name it where it fails.

    Args:
        name: one of `memory.estimate.PHASES`; phases may be nested.
    """
    before = RECORD.phase
    RECORD.enter(name)
    RECORD.failed = ""
    try:
        yield
    except BaseException:
        RECORD.failed = RECORD.failed or name
        raise
    finally:
        RECORD.enter(before)
