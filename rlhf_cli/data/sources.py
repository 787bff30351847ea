"""From a path to raw rows, one at a time: `.jsonl`, `.txt`, or a folder of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlhf_cli.data.row_errors import Malformed
from rlhf_cli.errors import DataError
from rlhf_cli.resources import SHIPPED, shipped_rows

SUFFIXES = (".jsonl", ".txt")
NEED = "need a .jsonl or .txt file, a folder of them, or tiny (the shipped rows)"
_BOM = b"\xef\xbb\xbf"

Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it stands in its file.

    Attributes:
        file: name of the file.
        line: 1 for the first.
        content: the line of a `.jsonl` file, or the whole of a `.txt` file.
        document: the content is text, not JSON.
    """

    file: str
    line: int
    content: bytes
    document: bool

    def columns(self) -> dict[str, Any]:
        """The row's columns; a document has one, `text`.

        Raises:
            Malformed: the content is not UTF-8, not JSON, or no JSON object.
        """
        text = self._text()
        if self.document:
            return {"text": text}
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise Malformed(f"broken JSON: {error.msg} at column {error.colno}") from None
        except (ValueError, RecursionError) as error:  # a number too long, brackets too deep
            raise Malformed(f"broken JSON: {error}") from None
        if not isinstance(value, dict):
            raise Malformed(f"got {show_value(value)}; need a JSON object")
        return value

    def _text(self) -> str:
        try:
            return self.content.decode("utf-8")
        except UnicodeDecodeError as error:
            line = self.content.count(b"\n", 0, error.start) + 1
            place = f" in line {line}" if self.document else ""
            byte = f"byte 0x{self.content[error.start]:02x}{place}"
            raise Malformed(f"not UTF-8: {byte}; save the file as UTF-8") from None


@dataclass(frozen=True)
class DataFiles:
    """The files that a path stands for, and the names in its folder that are left out."""

    read: tuple[Path, ...]
    skipped: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the files, for messages."""
        return tuple(file.name for file in self.read)


def resolve(path: str, stage: str, split: Split) -> Path:
    """The file or folder that `data.path` or `data.eval` means.

    Raises:
        DataError: nothing is there.
    """
    if path == SHIPPED:
        found = shipped_rows(stage, split)
        if not found.is_file():
            raise DataError(f"tiny: no shipped {split} rows for {stage}; {NEED}")
        return found
    if not path:
        raise DataError(f"data.path: none given; {NEED}. Try data=tiny")
    found = Path(path).expanduser()
    if not found.exists():
        raise DataError(f"{path}: no such file or folder; {NEED}")
    return found


def data_files(path: Path) -> DataFiles:
    """A file itself, or a folder's direct children in the order of their names.

    Raises:
        DataError: a file of another kind, or a folder without any that can be read.
    """
    if not path.is_dir():
        if path.suffix.lower() not in SUFFIXES:
            kind = f"a {path.suffix} file" if path.suffix else "a file without a suffix"
            raise DataError(f"{path.name}: {kind}; {NEED}")
        return DataFiles((path,))
    children = sorted(child for child in path.iterdir() if not child.name.startswith("."))
    read = tuple(c for c in children if c.is_file() and c.suffix.lower() in SUFFIXES)
    skipped = tuple(c.name for c in children if c not in read)
    if not read:
        holds = f"holds {', '.join(skipped[:5])}" if skipped else "is empty"
        raise DataError(f"{path}: the folder {holds}; {NEED}")
    return DataFiles(read, skipped)


def read_rows(files: Iterable[Path]) -> Iterator[RawRow]:
    """Every row of the files, in order; a blank line of a `.jsonl` file is no row.

    Raises:
        DataError: a file is empty or cannot be read.
    """
    for file in files:
        document = file.suffix.lower() == ".txt"
        rows = 0
        with reading(file):
            for row in _document(file) if document else _lines(file):
                rows += 1
                yield row
        if not rows:
            raise DataError(f"{file.name}: the file is empty; need at least one row")


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Says which file it was that the system would not let us read."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error


def _document(file: Path) -> Iterator[RawRow]:
    content = file.read_bytes().removeprefix(_BOM)
    if content:
        yield RawRow(file.name, 1, content, document=True)


def _lines(file: Path) -> Iterator[RawRow]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            content = line.rstrip(b"\r\n")
            if number == 1:
                content = content.removeprefix(_BOM)
            if content.strip():
                yield RawRow(file.name, number, content, document=False)


def iter_texts(path: str, stage: str, columns: Mapping[str, str] | None = None) -> Iterator[str]:
    """Every text of a data set, to train a tokenizer on.

    Documents, prompts, responses and the contents of messages. Rows that cannot be read are
    passed over: they are counted where the rows become examples.

    Args:
        path: as in `data.path`.
        stage: whose shipped rows `tiny` means.
        columns: as in `data.columns`.
    """
    names = _TEXT_COLUMNS | set((columns or {}).values())
    for row in read_rows(data_files(resolve(path, stage, "train")).read):
        try:
            found = row.columns()
        except Malformed:
            continue
        for name, value in found.items():
            if name in names:
                yield from _texts(value)


_TEXT_COLUMNS = {
    "text", "messages", "prompt", "completion", "chosen", "rejected", "responses",
}  # fmt: skip


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item.get("content") if isinstance(item, dict) else item)


def show_value(value: Any) -> str:
    """A JSON value in a few words, for a message."""
    if isinstance(value, dict):
        return f"an object with keys {sorted(value)[:8]}"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    return json.dumps(value if not isinstance(value, str) else _shortened(value))


def _shortened(text: str, most: int = 40) -> str:
    return text if len(text) <= most else text[:most] + "..."
