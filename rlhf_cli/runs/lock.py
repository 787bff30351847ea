"""Lock of a run folder: one process owns it.

`filelock` cannot replace it: it holds `flock` for hours, and cannot take over the lock of a dead or
suspended owner on another host of a shared file system.

The lock file names the owner's process id, host and start time (process ids are reused). `flock`
only guards the moment in which the file is read and rewritten.

Whether a process of another host is alive cannot be seen. Each owner therefore updates the
modification time of its lock file every `BEAT_SECONDS`, and a lock of another host is taken over
when that time is `STALE_SECONDS` old, by the clock of the file system.

An owner that was suspended for longer may lose its folder: it checks before it writes, and ends.
"""

import atexit
import errno
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rlhf_cli.errors import CheckpointError

NAME = ".lock"

BEAT_SECONDS = 30.0
STALE_SECONDS = 300.0
"""Ten missed beats: shared file systems may show a new modification time after a minute only."""


@dataclass
class _Heartbeat:
    """Heartbeat of a folder that this process owns.

    Attributes:
        ended: set to end the heartbeat.
        at: time of the last beat, in seconds of the wall clock, which includes a suspension.
        lost: whether another process owned the folder at that time.
    """

    ended: threading.Event = field(default_factory=threading.Event)
    at: float = field(default_factory=time.time)
    lost: bool = False

    def beat(self, path: Path) -> None:
        """Refresh the lock and record whether this process still owns it."""
        self.lost = not refresh(path)
        self.at = time.time()


_heartbeats: dict[Path, _Heartbeat] = {}
"""Folder -> heartbeat, for all folders that this process owns."""


def acquire(path: Path) -> None:
    """Make this process the owner of a folder until it ends or releases it.

    Raises:
        CheckpointError: another process owns it and is alive or, on another host, was alive
            within the last `STALE_SECONDS`.
        OSError: the folder cannot be written.
    """
    me = _me()
    with _guarded(path / NAME) as file:
        owner = _owner(file)
        if owner and owner != me:
            _require_gone(path, owner)
        file.seek(0)
        file.truncate()
        json.dump(me, file)
    atexit.register(release, path)
    _begin_heartbeat(path)


def _require_gone(path: Path, owner: dict[str, Any]) -> None:
    who = f"output_dir: {path} belongs to process {owner['pid']} on {owner['host']}"
    advice = "wait for it, end it, or use another output_dir"
    if owner["host"] == socket.gethostname():
        if _alive(owner):
            raise CheckpointError(f"{who}; {advice}")
        return
    age = _age(path / NAME)
    if age < STALE_SECONDS:
        raise CheckpointError(
            f"{who}, which was alive {max(0, age):.0f} s ago; {advice}. If it is gone, the folder "
            f"is taken over {STALE_SECONDS:.0f} s after its last sign of life, or at once when "
            f"{path / NAME} is removed"
        )


def _age(lock: Path) -> float:
    """Seconds since the last heartbeat, by the clock of the file system."""
    with tempfile.NamedTemporaryFile(dir=lock.parent, prefix=f"{NAME}.") as now:
        return os.stat(now.name).st_mtime - lock.stat().st_mtime


def _begin_heartbeat(path: Path) -> None:
    if path in _heartbeats and not _heartbeats[path].lost:
        return
    heartbeat = _heartbeats[path] = _Heartbeat()

    def keep_beating() -> None:
        while not heartbeat.lost and not heartbeat.ended.wait(BEAT_SECONDS):
            heartbeat.beat(path)

    threading.Thread(target=keep_beating, name="rlhf-lock", daemon=True).start()


def refresh(path: Path) -> bool:
    """Update the modification time of the lock if this process still owns the folder.

    Returns:
        Whether it does; a lock file that is gone may have been a later owner's.
    """
    try:
        with _guarded(path / NAME, create=False) as file:
            if _owner(file) != _me():
                return False
            os.utime(path / NAME)
    except FileNotFoundError:
        return False
    except OSError:  # a disk that does not respond says nothing about the owner
        pass
    return True


def is_lost(path: Path) -> bool:
    """Whether another process has taken over a folder that this process owned.

    The lock is read again if the last beat is long ago, as after a suspension.
    """
    heartbeat = _heartbeats.get(path)
    if heartbeat is None:
        return False
    if not heartbeat.lost and time.time() - heartbeat.at > 2 * BEAT_SECONDS:
        heartbeat.beat(path)
    return heartbeat.lost


def is_held(path: Path) -> bool:
    """Whether a living process owns a folder, as far as can be seen from here; writes nothing."""
    lock = path / NAME
    try:
        with lock.open(encoding="utf-8") as file:
            owner = _owner(file)
        age = time.time() - lock.stat().st_mtime
    except (OSError, ValueError):
        return False
    if owner is None:
        return False
    return _alive(owner) if owner["host"] == socket.gethostname() else age < STALE_SECONDS


def require_owned(path: Path) -> None:
    """Refuse to write into a folder that another process has taken over.

    Raises:
        CheckpointError: this process no longer owns it.
    """
    if is_lost(path):
        raise CheckpointError(
            f"output_dir: {path} was taken over by another process while this one stood still "
            f"(or its {NAME} was removed), so nothing more is written to it. Wait for the other "
            "process, or use another output_dir"
        )


def release(path: Path) -> None:
    """Release a folder that this process owns; failures are ignored, the owner will be dead."""
    heartbeat = _heartbeats.pop(path, None)
    if heartbeat is not None:
        heartbeat.ended.set()
    with suppress(OSError):
        if (path / NAME).is_file():
            _remove_own(path / NAME)


def _remove_own(lock: Path) -> None:
    with _guarded(lock) as file:
        if _owner(file) == _me():
            lock.unlink()


@contextmanager
def _guarded(lock: Path, *, create: bool = True) -> Iterator[TextIO]:
    """Open the lock file with an exclusive `flock` for the block."""
    flags = os.O_RDWR | (os.O_CREAT if create else 0)
    while True:
        with open(os.open(lock, flags, 0o644), "r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _still_there(lock, file):
                yield file
                file.flush()
                return


def _still_there(lock: Path, file: TextIO) -> bool:
    """False if the last owner removed the file after we opened and before we locked it."""
    try:
        return os.stat(lock).st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def _me() -> dict[str, Any]:
    """Identity of this process; containers of several hosts often share process ids."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())}


def _owner(file: TextIO) -> dict[str, Any] | None:
    file.seek(0)
    try:
        owner = json.loads(file.read() or "null")
    except ValueError:  # cut off by a crash
        return None
    return owner if isinstance(owner, dict) and owner.keys() == {"pid", "host", "started"} else None


def _alive(owner: dict[str, Any]) -> bool:
    """Whether an owner on this host still runs."""
    try:
        os.kill(owner["pid"], 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return bool(_started(owner["pid"]) == owner["started"])


def _started(pid: int) -> str:
    """Start time of a process in clock ticks since boot; empty without /proc."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text(encoding="utf-8")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]
