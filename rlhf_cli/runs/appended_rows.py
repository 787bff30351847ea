"""Files of rows that people append to one after the other, as `rlhf chat` and `rlhf label` do.

Every row is one write of one line under a lock on the file, and is on the disk before the call
returns: two programs can append to the same file, and a crash leaves no half line.
"""

from __future__ import annotations

import fcntl
import getpass
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhf_cli.errors import DataError
from rlhf_cli.runs.run_files import to_json_line


def require_appendable(path: Path, key: str = "output") -> None:
    """Refuse a path that rows cannot be appended to; nothing is left there.

    Raises:
        DataError: it is a folder, pipe or device, or cannot be written.
    """
    if path.exists():
        if not path.is_file():
            raise DataError(f"{key}: {path} is a folder, pipe or device; need a regular file")
        writable = os.access(path, os.W_OK)
    else:
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        writable = _is_writable(folder)
    if not writable:
        raise DataError(f"{key}: {path} cannot be written. Try {key}=FILE in another folder")


def _is_writable(folder: Path) -> bool:
    """Whether files can be created in a folder; its permissions alone do not say so."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def append_row(path: Path, row: Mapping[str, Any], key: str = "output") -> bytes:
    """Append a row as one JSON line; folders are created.

    Returns:
        The line, with which `remove_row` finds it again.

    Raises:
        DataError: the file cannot be written; it is then as it was.
    """
    line = to_json_line(row).encode()
    with _raising_data_error(path, key):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path) as file:
            end = os.lseek(file, 0, os.SEEK_END)
            complete = not end or os.pread(file, 1, end - 1) == b"\n"
            _write_or_restore(file, line if complete else b"\n" + line, end)
    return line


def remove_row(path: Path, line: bytes, key: str = "output") -> bool:
    """Remove the last occurrence of a line, and a file that has no other.

    The file is replaced by its copy without the line.

    Args:
        path: file of rows.
        line: as `append_row` returned it.
        key: config key of the path, for the message.

    Returns:
        False if the file has no such line.

    Raises:
        DataError: the file cannot be written.
    """
    with _raising_data_error(path, key), _locked(path) as file:
        content = Path(path).read_bytes()
        start = content.rfind(line)
        if start < 0 or (start and content[start - 1 : start] != b"\n"):
            return False
        rest = content[:start] + content[start + len(line) :]
        if rest:
            _replace(path, rest, os.fstat(file).st_mode)
        else:
            path.unlink()  # a file without rows is refused where it is read
    return True


def _write_or_restore(file: int, content: bytes, end: int) -> None:
    """Write at the end of a file; after an error, such as a full disk, cut it back to `end`."""
    try:
        written = os.write(file, content)
        if written < len(content):
            os.write(file, content[written:])  # raises what cut the first write short
        os.fsync(file)
    except BaseException:
        with suppress(OSError):
            os.ftruncate(file, end)
        raise


def _replace(path: Path, content: bytes, mode: int) -> None:
    target = path.resolve()
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, stat.S_IMODE(mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Open a file for appending, and lock it until the block ends."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            # another program may have replaced the file while this one waited
            if os.path.exists(path) and os.path.samestat(os.fstat(file), os.stat(path)):
                yield file
                return
        finally:
            os.close(file)  # which unlocks it


@contextmanager
def _raising_data_error(path: Path, key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{key}: {path} cannot be written ({error.strerror})") from error


def rater_name(given: str) -> str:
    """Name of the person who rates: as given, else the user name."""
    if given:
        return given
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return f"uid {os.getuid()}"


def timestamp() -> str:
    """The time now in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
