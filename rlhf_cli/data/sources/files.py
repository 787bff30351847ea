"""Local files of rows: which files a path stands for, and the rows of each format."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from rlhf_cli.data.report import Malformed
from rlhf_cli.data.sources.base import RawRow, Side, show_value
from rlhf_cli.errors import DataError, first_line
from rlhf_cli.resources import SHIPPED, shipped_rows
from rlhf_cli.runs.data_files import METADATA

BOM = b"\xef\xbb\xbf"


BATCH_ROWS = 1024


def suffix(file: Path) -> str:
    """The suffix that says the format, in lower case: `.csv` for `rows.csv.gz`."""
    name = file.name.lower().removesuffix(".gz")
    return Path(name).suffix


def read_file(file: Path) -> Iterator[RawRow]:
    """The rows of a file.

    Raises:
        DataError: the file as a whole is not of its format.
        OSError: it cannot be read.
    """
    return READERS[suffix(file)](file)


def _open(file: Path) -> IO[bytes]:
    opener = gzip.open if file.suffix.lower() == ".gz" else open
    return cast(IO[bytes], opener(file, "rb"))


def _documents(file: Path) -> Iterator[RawRow]:
    with _open(file) as stream:
        content = stream.read().removeprefix(BOM)
    if content:
        text = _text(content, lines=True)
        found = text if isinstance(text, Malformed) else {"text": text}
        yield RawRow(file.name, 1, found, len(content))


def _json_lines(file: Path) -> Iterator[RawRow]:
    with _open(file) as stream:
        for number, line in enumerate(stream, start=1):
            content = line.rstrip(b"\r\n")
            if number == 1:
                content = content.removeprefix(BOM)
            if content.strip():
                yield RawRow(file.name, number, _object(content), len(line))


def _json(file: Path) -> Iterator[RawRow]:
    """A list of objects, an object whose `data` is one, or JSON lines under another name."""
    with _open(file) as stream:
        content = stream.read().removeprefix(BOM)
    if not content.strip():
        return
    try:
        value = _parsed(content)
    except Malformed as error:
        first = content.lstrip().partition(b"\n")[0]
        if isinstance(_object(first.rstrip(b"\r")), dict):
            yield from _json_lines(file)
        else:
            yield RawRow(file.name, getattr(error.__cause__, "lineno", 1), error, len(content))
        return
    listed = value.get("data") if isinstance(value, dict) else value
    rows = listed if isinstance(listed, list) else [value]
    for number, row in enumerate(rows, start=1):
        yield RawRow(file.name, number, _as_object(row), len(content) // len(rows))


def _object(content: bytes) -> dict[str, Any] | Malformed:
    try:
        return _as_object(_parsed(content))
    except Malformed as error:
        return error


def _parsed(content: bytes) -> Any:
    text = _text(content)
    if isinstance(text, Malformed):
        raise text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise Malformed(f"broken JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number too long, brackets too deep
        raise Malformed(f"broken JSON: {error}") from error


def _as_object(value: Any) -> dict[str, Any] | Malformed:
    if isinstance(value, dict):
        return value
    return Malformed(f"got {show_value(value)}; need a JSON object")


def _text(content: bytes, *, lines: bool = False) -> str | Malformed:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        place = f" in line {line}" if lines else ""
        return _not_utf8(f"byte 0x{content[error.start]:02x}{place}")


def _not_utf8(byte: str) -> Malformed:
    return Malformed(f"not UTF-8: {byte}; save the file as UTF-8")


def _table(file: Path, delimiter: str) -> Iterator[RawRow]:
    """Comma or tab separated values under a header; a quoted cell may hold line ends.

    A carriage return alone ends no line: the text mode that the `csv` module's page advises would
    count it as one, and cut a cell that is not quoted into two rows.
    """
    csv.field_size_limit(sys.maxsize)  # 128 KB otherwise, which a document can exceed
    with (
        _open(file) as stream,
        io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="\n") as lines,
    ):
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header = _header(file, reader)
        line = reader.line_num + 1
        while (cells := _cells(reader)) is not None:
            if cells:  # a blank line is no row
                size = len(cells) if isinstance(cells, Malformed) else sum(map(len, cells))
                yield RawRow(file.name, line, _named(header, cells), size, untyped=True)
            line = reader.line_num + 1


class _Broken(Malformed):
    """A row that the format cannot tell apart; true, as a row with cells is."""

    def __len__(self) -> int:
        return 1


def _cells(reader: Any) -> list[str] | _Broken | None:
    """The next row, or none at the end."""
    try:
        return next(reader, None)
    except csv.Error as error:
        if "new-line character" in str(error):
            return _Broken("a carriage return outside quotes; quote the cell, end lines with \\n")
        return _Broken(f"broken quotes: {error}")


def _header(file: Path, reader: Any) -> list[str]:
    names = _cells(reader)
    if names is None:
        return []
    if isinstance(names, Malformed):
        raise DataError(f"{file.name}:1: {names}; need a first line of column names")
    if not all(names) or len(set(names)) < len(names):
        raise DataError(
            f"{file.name}:1: the columns are {names}; need a first line of names, each once"
        )
    return names


def _named(header: list[str], cells: list[str] | Malformed) -> dict[str, Any] | Malformed:
    if isinstance(cells, Malformed):
        return cells
    if len(cells) != len(header):
        return Malformed(f"{len(cells)} cells under {len(header)} columns; quote text with commas")
    try:
        "".join(cells).encode()
    except UnicodeEncodeError as error:
        return _not_utf8(f"byte 0x{ord(error.object[error.start]) - 0xDC00:02x}")
    return dict(zip(header, cells, strict=True))


def _parquet(file: Path) -> Iterator[RawRow]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            size = file.stat().st_size // max(table.metadata.num_rows, 1)
            number = 0
            for batch in table.iter_batches(BATCH_ROWS):
                for found in _batch(batch):
                    number += 1
                    yield RawRow(file.name, number, found, size)
    except pyarrow.ArrowException as error:
        raise DataError(f"{file.name}: cannot be read as parquet: {first_line(error)}") from error


def _batch(batch: Any) -> Iterator[dict[str, Any] | Malformed]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # says not in which row
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield _not_utf8(f"byte 0x{error.object[error.start]:02x}")


READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": lambda file: _table(file, ","),
    ".tsv": lambda file: _table(file, "\t"),
    ".parquet": _parquet,
    ".txt": _documents,
}


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
    return path.is_file() and suffix(path) in SUFFIXES and path.name not in METADATA


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


def fingerprint(files: Iterable[Path]) -> str:
    """Changes with the files' names, order and bytes.

    Raises:
        DataError: a file cannot be read.
    """
    whole = hashlib.sha256()
    for file in files:
        with reading(file), file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        whole.update(f"{file.name}\n{content}\n".encode())
    return whole.hexdigest()
