"""One process owns a run folder.

The lock file names the process; its start time tells it from a later one with the same id. `flock`
only guards the moment in which the file is read and rewritten, so it need not hold over hours.
"""

import atexit
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from rlhf_cli.errors import CheckpointError

NAME = ".lock"


def acquire(path: Path) -> None:
    """Make this process the owner of a folder until it ends or releases it.

    Raises:
        CheckpointError: Another process, still alive, owns it.
        OSError: The folder cannot be written.
    """
    me = {"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())}
    with _guarded(path / NAME) as file:
        owner = _owner(file)
        if owner and owner != me and _alive(owner):
            who = f"process {owner['pid']} on {owner['host']}"
            advice = "wait for it, end it, or use another output_dir"
            if owner["host"] != me["host"]:
                advice += f"; if it is gone, remove {path / NAME}"
            raise CheckpointError(f"output_dir: {path} belongs to {who}; {advice}")
        file.seek(0)
        file.truncate()
        json.dump(me, file)
    atexit.register(release, path)


def release(path: Path) -> None:
    """Give a folder up, if this process owns it; a lock left on a read-only disk binds nobody."""
    with suppress(OSError):
        if (path / NAME).is_file():
            _give_up(path / NAME)


def _give_up(lock: Path) -> None:
    with _guarded(lock) as file:
        if (_owner(file) or {}).get("pid") == os.getpid():
            lock.unlink()


@contextmanager
def _guarded(lock: Path) -> Iterator[TextIO]:
    """The lock file, open, and nobody else in this block."""
    while True:
        with open(os.open(lock, os.O_RDWR | os.O_CREAT, 0o644), "r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _still_there(lock, file):
                yield file
                file.flush()
                return


def _still_there(lock: Path, file: TextIO) -> bool:
    """False if the last owner removed the file between our opening and locking it."""
    try:
        return os.stat(lock).st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def _owner(file: TextIO) -> dict[str, Any] | None:
    file.seek(0)
    try:
        owner = json.loads(file.read() or "null")
    except ValueError:  # cut off by a crash
        return None
    return owner if isinstance(owner, dict) and owner.keys() == {"pid", "host", "started"} else None


def _alive(owner: dict[str, Any]) -> bool:
    if owner["host"] != socket.gethostname():
        return True  # cannot be seen from here
    try:
        os.kill(owner["pid"], 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return bool(_started(owner["pid"]) == owner["started"])


def _started(pid: int) -> str:
    """The start time of a process in clock ticks since boot; empty where /proc is missing."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text(encoding="utf-8")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]
