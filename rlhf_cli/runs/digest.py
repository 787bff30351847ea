"""SHA-256 of files, computed once on each machine and read again by all processes of all runs."""

import hashlib
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from rlhf_cli.resources import cache_folder

FOLDER = "digests"

KEPT_SECONDS = 90 * 24 * 3600
"""Time after which a hash is removed from the cache; one that is still needed is computed anew."""

SMALL_BYTES = 1 << 20
"""Smaller files are hashed each time, which takes a millisecond."""

RECENT_NS = 2 * 10**9
"""A file that changed within this time may change again without another time stamp."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes.

    A file of the same path, size, times of modification and of change, and index node counts as
    unchanged. The system sets the time of change, which no program can set back.

    Raises:
        OSError: the file cannot be read.
    """
    status = path.stat()
    if status.st_size < SMALL_BYTES:
        return hash_file(path)
    facts = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    key = hashlib.sha256(f"{path.absolute()} {facts}".encode()).hexdigest()
    stored = cache_folder() / FOLDER / key
    with suppress(OSError):
        found = stored.read_text(encoding="ascii")
        if len(found) == hashlib.sha256().digest_size * 2:
            return found
    found = hash_file(path)
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > RECENT_NS:
        _store(stored, found)
    return found


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, which are read each time.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _store(path: Path, text: str) -> None:
    """Write a small file at once; a cache that cannot be written is ignored."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(text)
            os.replace(name, path)
        except OSError:
            os.unlink(name)
            raise
        _remove_old(path.parent)


def _remove_old(folder: Path) -> None:
    """Remove hashes of long ago, and temporary files of processes that were killed."""
    oldest = time.time() - KEPT_SECONDS
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process removes too
            if path.stat().st_mtime < oldest:
                path.unlink()
