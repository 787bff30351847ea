"""Local data files: find those that a path means, and read their rows."""

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

from rlhf_cli.data.report import MalformedRow
from rlhf_cli.data.sources.base import DefaultSplit, RawRow, describe_value
from rlhf_cli.errors import DataError, first_line
from rlhf_cli.resources import SHIPPED, shipped_rows
from rlhf_cli.runs.digest import file_sha256
from rlhf_cli.runs.inputs import METADATA_FILES

BOM = b"\xef\xbb\xbf"
BATCH_ROWS = 1024


def format_suffix(file: Path) -> str:
    """Return the suffix of the file format in lower case: `.csv` for `rows.csv.gz`."""
    name = file.name.lower().removesuffix(".gz")
    return Path(name).suffix


def read_file(file: Path) -> Iterator[RawRow]:
    """Read the rows of one file, one at a time where the format allows it.

    Raises:
        DataError: the file is not of the format that its suffix names.
        OSError: the file cannot be read.
    """
    return READERS[format_suffix(file)](file)


def _open(file: Path) -> IO[bytes]:
    opener = gzip.open if file.suffix.lower() == ".gz" else open
    return cast(IO[bytes], opener(file, "rb"))


def _read_text(file: Path) -> Iterator[RawRow]:
    with _open(file) as stream:
        content = stream.read().removeprefix(BOM)
    if content:
        text = _decode(content, lines=True)
        parsed = text if isinstance(text, MalformedRow) else {"text": text}
        yield RawRow(file.name, 1, parsed, len(content))


def _read_json_lines(file: Path) -> Iterator[RawRow]:
    with _open(file) as stream:
        for number, line in enumerate(stream, start=1):
            content = line.rstrip(b"\r\n")
            if number == 1:
                content = content.removeprefix(BOM)
            if content.strip():
                yield RawRow(file.name, number, _parse_object(content), len(line))


def _read_json(file: Path) -> Iterator[RawRow]:
    """Read a list of objects, an object whose `data` is such a list, or JSON lines."""
    with _open(file) as stream:
        content = stream.read().removeprefix(BOM)
    if not content.strip():
        return
    try:
        value = _parse_json(content)
    except MalformedRow as error:
        first = content.lstrip().partition(b"\n")[0]
        if isinstance(_parse_object(first.rstrip(b"\r")), dict):
            yield from _read_json_lines(file)
        else:
            yield RawRow(file.name, getattr(error.__cause__, "lineno", 1), error, len(content))
        return
    listed = value.get("data") if isinstance(value, dict) else value
    rows = listed if isinstance(listed, list) else [value]
    for number, row in enumerate(rows, start=1):
        yield RawRow(file.name, number, _require_object(row), len(content) // len(rows))


def _parse_object(content: bytes) -> dict[str, Any] | MalformedRow:
    try:
        return _require_object(_parse_json(content))
    except MalformedRow as error:
        return error


def _parse_json(content: bytes) -> Any:
    text = _decode(content)
    if isinstance(text, MalformedRow):
        raise text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise MalformedRow(f"broken JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # number too long or nesting too deep
        raise MalformedRow(f"broken JSON: {error}") from error


def _require_object(value: Any) -> dict[str, Any] | MalformedRow:
    if isinstance(value, dict):
        return value
    return MalformedRow(f"got {describe_value(value)}; need a JSON object")


def _decode(content: bytes, *, lines: bool = False) -> str | MalformedRow:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        location = f" in line {line}" if lines else ""
        return _not_utf8(f"byte 0x{content[error.start]:02x}{location}")


def _not_utf8(byte: str) -> MalformedRow:
    return MalformedRow(f"not UTF-8: {byte}; save the file as UTF-8")


def _read_table(file: Path, delimiter: str) -> Iterator[RawRow]:
    """Read comma or tab separated values with a header; quoted cells may contain line breaks.

    A lone carriage return does not end a line. The text mode that the page of `csv` advises would
    count it as a line break, and split an unquoted cell into two rows.
    """
    csv.field_size_limit(sys.maxsize)  # 128 KB otherwise, which a document can exceed
    with (
        _open(file) as stream,
        io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="\n") as lines,
    ):
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header = _read_header(file, reader)
        line = reader.line_num + 1
        while (cells := _next_cells(reader)) is not None:
            if cells:  # skip blank lines
                size = len(cells) if isinstance(cells, MalformedRow) else sum(map(len, cells))
                yield RawRow(file.name, line, _name_cells(header, cells), size, untyped=True)
            line = reader.line_num + 1


class _BrokenCells(MalformedRow):
    """A row that cannot be split into cells; truthy, like a row that is not blank."""

    def __len__(self) -> int:
        return 1


def _next_cells(reader: Any) -> list[str] | _BrokenCells | None:
    """Return the cells of the next row, or None at the end."""
    try:
        return next(reader, None)
    except csv.Error as error:
        if "new-line character" in str(error):
            return _BrokenCells(
                "a carriage return outside quotes; quote the cell, end lines with \\n"
            )
        return _BrokenCells(f"broken quotes: {error}")


def _read_header(file: Path, reader: Any) -> list[str]:
    names = _next_cells(reader)
    if names is None:
        return []
    if isinstance(names, MalformedRow):
        raise DataError(f"{file.name}:1: {names}; need a first line of column names")
    if not all(names) or len(set(names)) < len(names):
        raise DataError(
            f"{file.name}:1: the columns are {names}; need a first line of names, each once"
        )
    return names


def _name_cells(
    header: list[str], cells: list[str] | MalformedRow
) -> dict[str, Any] | MalformedRow:
    if isinstance(cells, MalformedRow):
        return cells
    if len(cells) != len(header):
        return MalformedRow(
            f"{len(cells)} cells under {len(header)} columns; quote text with commas"
        )
    try:
        "".join(cells).encode()
    except UnicodeEncodeError as error:
        return _not_utf8(f"byte 0x{ord(error.object[error.start]) - 0xDC00:02x}")
    return dict(zip(header, cells, strict=True))


def _read_parquet(file: Path) -> Iterator[RawRow]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            size = file.stat().st_size // max(table.metadata.num_rows, 1)
            number = 0
            for batch in table.iter_batches(BATCH_ROWS):
                for parsed in _batch_rows(batch):
                    number += 1
                    yield RawRow(file.name, number, parsed, size)
    except pyarrow.ArrowException as error:
        raise DataError(f"{file.name}: cannot be read as parquet: {first_line(error)}") from error


def _batch_rows(batch: Any) -> Iterator[dict[str, Any] | MalformedRow]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # the error does not name the row
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield _not_utf8(f"byte 0x{error.object[error.start]:02x}")


READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".csv": lambda file: _read_table(file, ","),
    ".tsv": lambda file: _read_table(file, "\t"),
    ".parquet": _read_parquet,
    ".txt": _read_text,
}

SUFFIXES = tuple(READERS)
PATH_HELP = (
    f"need a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file, a folder of them, a hub id, "
    "or tiny (the shipped rows)"
)
HELD_OUT_SPLITS = ("test", "validation", "valid", "dev", "eval")
_SPLIT_PREFIX = re.compile(rf"(train|{'|'.join(HELD_OUT_SPLITS)})(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class DataFiles:
    """The data files of a path, and the names of files in its folder that are not read."""

    files: tuple[Path, ...]
    skipped: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """File names, for messages."""
        return tuple(file.name for file in self.files)


def resolve_data_path(path: str, stage: str, default_split: DefaultSplit) -> Path:
    """Return the file or folder that `data.path` or `data.eval` names.

    Raises:
        DataError: it does not exist.
    """
    if path == SHIPPED:
        found = shipped_rows(stage, default_split)
        if not found.is_file():
            raise DataError(f"tiny: no shipped {default_split} rows for {stage}; {PATH_HELP}")
        return found
    if not path:
        raise DataError(f"data.path: none given; {PATH_HELP}. Try data=tiny")
    found = Path(path).expanduser()
    if not found.exists():
        raise DataError(f"{path}: no such file or folder; {PATH_HELP}")
    return found


def find_data_files(path: Path, split: str = "train") -> DataFiles:
    """Return the file itself, or the data files directly in a folder, sorted by name.

    If the names of files in the folder begin with split names, `train` among them, only the files
    of `split` are returned.

    Raises:
        DataError: the file has an unknown format, or the folder has no data files.
    """
    if not path.is_dir():
        _require_known_format(path)
        return DataFiles((path,))
    children = sorted(child for child in path.iterdir() if not child.name.startswith("."))
    files = [child for child in children if is_data_file(child)]
    if not files:
        holds = f"holds {', '.join(c.name for c in children[:5])}" if children else "is empty"
        raise DataError(f"{path}: the folder {holds}; {PATH_HELP}")
    files = _select_split(path, files, split)
    return DataFiles(tuple(files), tuple(c.name for c in children if c not in files))


def _require_known_format(path: Path) -> None:
    if format_suffix(path) in SUFFIXES:
        return
    if format_suffix(path) == ".arrow":
        raise DataError(
            f"{path.name}: an arrow file; need the folder that save_to_disk wrote. "
            f"Try data={path.parent}"
        )
    kind = f"a {path.suffix} file" if path.suffix else "a file without a suffix"
    raise DataError(f"{path.name}: {kind}; {PATH_HELP}")


def is_data_file(path: Path) -> bool:
    """Whether a path is a file with the name of a data file."""
    return path.is_file() and format_suffix(path) in SUFFIXES and path.name not in METADATA_FILES


def _select_split(folder: Path, files: list[Path], split: str) -> list[Path]:
    splits = [_split_of_file(file) for file in files]
    if "train" not in splits or set(splits) <= {"train", ""}:
        return files
    held_out = [name for name in HELD_OUT_SPLITS if name in splits][:1]
    wanted = held_out if split == "test" else [split]
    found = [file for file, name in zip(files, splits, strict=True) if name in wanted]
    if not found:
        present = ", ".join(sorted(set(filter(None, splits))))
        raise DataError(f"{folder}: no split {split}; the files' names begin with {present}")
    return found


def _split_of_file(file: Path) -> str:
    found = _SPLIT_PREFIX.match(file.name)
    return found[1].lower() if found else ""


def read_rows(files: Iterable[Path]) -> Iterator[RawRow]:
    """Read all rows of the files in order.

    Raises:
        DataError: a file is empty or cannot be read.
    """
    for file in files:
        rows = 0
        with wrap_read_errors(file):
            for row in read_file(file):
                rows += 1
                yield row
        if not rows:
            raise DataError(f"{file.name}: the file is empty; need at least one row")


@contextmanager
def wrap_read_errors(file: Path) -> Iterator[None]:
    """Turn errors of the operating system into a DataError that names the file."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:  # the last two from a damaged .gz
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{file}: cannot be read: {reason}") from error


def fingerprint_files(files: Iterable[Path]) -> str:
    """Hash the files' names, order and bytes; each is read once on a machine, not by every rank.

    Raises:
        DataError: a file cannot be read.
    """
    whole = hashlib.sha256()
    for file in files:
        with wrap_read_errors(file):
            content = file_sha256(file)
        whole.update(f"{file.name}\n{content}\n".encode())
    return whole.hexdigest()
