"""From a path to the files it stands for, and their raw rows."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlhf_cli.data.reading.formats import READERS, read_file, suffix
from rlhf_cli.data.reading.raw import RawRow, Side
from rlhf_cli.errors import DataError
from rlhf_cli.resources import SHIPPED, shipped_rows
from rlhf_cli.runs.inputs import METADATA_FILES

SUFFIXES = tuple(READERS)
NEED = (
    f"need a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file, a folder of them, a hub id, "
    "or tiny (the shipped rows)"
)
HELD_OUT = ("test", "validation", "valid", "dev", "eval")
_NAMED_SPLIT = re.compile(rf"(train|{'|'.join(HELD_OUT)})(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class DataFiles:
    """The files that a path stands for, and the names in its folder that are left out."""

    read: tuple[Path, ...]
    skipped: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the files, for messages."""
        return tuple(file.name for file in self.read)


def resolve(path: str, stage: str, side: Side) -> Path:
    """The file or folder that `data.path` or `data.eval` means.

    Raises:
        DataError: nothing is there.
    """
    if path == SHIPPED:
        found = shipped_rows(stage, side)
        if not found.is_file():
            raise DataError(f"tiny: no shipped {side} rows for {stage}; {NEED}")
        return found
    if not path:
        raise DataError(f"data.path: none given; {NEED}. Try data=tiny")
    found = Path(path).expanduser()
    if not found.exists():
        raise DataError(f"{path}: no such file or folder; {NEED}")
    return found


def data_files(path: Path, split: str = "train") -> DataFiles:
    """A file itself, or a folder's direct children in the order of their names.

    Where the names of a folder's files begin with the names of splits, `train` among them, only the
    files of one split are read.

    Raises:
        DataError: a file of another kind, or a folder without any that can be read.
    """
    if not path.is_dir():
        if suffix(path) not in SUFFIXES:
            kind = f"a {path.suffix} file" if path.suffix else "a file without a suffix"
            if suffix(path) == ".arrow":
                raise DataError(
                    f"{path.name}: an arrow file; need the folder that save_to_disk wrote. "
                    f"Try data={path.parent}"
                )
            raise DataError(f"{path.name}: {kind}; {NEED}")
        return DataFiles((path,))
    children = sorted(child for child in path.iterdir() if not child.name.startswith("."))
    read = [child for child in children if holds_rows(child)]
    if not read:
        holds = f"holds {', '.join(c.name for c in children[:5])}" if children else "is empty"
        raise DataError(f"{path}: the folder {holds}; {NEED}")
    read = _of_split(path, read, split)
    return DataFiles(tuple(read), tuple(c.name for c in children if c not in read))


def holds_rows(path: Path) -> bool:
    """Whether something in a folder is a file of rows, by its name."""
    return path.is_file() and suffix(path) in SUFFIXES and path.name not in METADATA_FILES


def _of_split(folder: Path, files: list[Path], split: str) -> list[Path]:
    splits = [_split_name(file) for file in files]
    if "train" not in splits or set(splits) <= {"train", ""}:
        return files
    wanted = [split] if split != "test" else [name for name in HELD_OUT if name in splits][:1]
    found = [file for file, name in zip(files, splits, strict=True) if name in wanted]
    if not found:
        there = ", ".join(sorted(set(filter(None, splits))))
        raise DataError(f"{folder}: no split {split}; the files' names begin with {there}")
    return found


def _split_name(file: Path) -> str:
    found = _NAMED_SPLIT.match(file.name)
    return found[1].lower() if found else ""


def read_rows(files: Iterable[Path]) -> Iterator[RawRow]:
    """Every row of the files, in order.

    Raises:
        DataError: a file is empty or cannot be read.
    """
    for file in files:
        rows = 0
        with reading(file):
            for row in read_file(file):
                rows += 1
                yield row
        if not rows:
            raise DataError(f"{file.name}: the file is empty; need at least one row")


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Says which file it was that the system would not let us read."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:  # the last two from a damaged .gz
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{file}: cannot be read: {reason}") from error
