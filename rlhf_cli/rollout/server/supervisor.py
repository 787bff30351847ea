"""Runs a server's command, and ends it with all its processes when the trainer ends, however.

python supervisor.py PID_OF_THE_TRAINER COMMAND...

A script of the standard library alone: it starts at once, and is there when the trainer was killed.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import FrameType

INTERVAL = 0.1
"""Seconds between two looks at the processes."""

GRACE = 10.0
"""Seconds in which a server may end by itself."""


def supervise(parent: int, command: list[str]) -> int:
    """Run a command until it ends, the parent process ends, or SIGTERM comes.

    Args:
        parent: process id of the trainer, which has started this process.
        command: program and arguments.

    Returns:
        Exit code of the command, as a shell gives it.
    """
    asked: list[int] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, ask)
    try:
        child = subprocess.Popen(command, start_new_session=True)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        return 127
    while child.poll() is None and not asked and os.getppid() == parent:
        time.sleep(INTERVAL)
    end_group(child)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def end_group(child: "subprocess.Popen[bytes]") -> None:
    """End a process and all that it has started."""
    _signal_group(child.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        child.wait(GRACE)
    _signal_group(child.pid, signal.SIGKILL)
    child.wait()


def _signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(supervise(int(sys.argv[1]), sys.argv[2:]))
