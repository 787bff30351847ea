"""The index of a checkpoint: which rows of which tensor lie in which file, and the files' hashes.

`index.json` has three groups of tensors, `weights`, `optimizer` and `stage`. Each tensor has its
whole shape and pieces, which are consecutive rows of dim 0 in one file. It does not depend on the
number of processes that wrote it: any number can read the rows that it needs.

A checkpoint of format 3 has no index; its three files hold whole tensors, and the same description
is made of their headers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from rlhf_cli.models.stored_file import DTYPES
from rlhf_cli.runs.digest import hash_file

FORMAT = 4
WHOLE_FILES_FORMAT = 3
"""Format of versions before sharded training: one file of each group, and no index."""

INDEX, STATE, RNG = "index.json", "state.json", "rng.safetensors"
WEIGHTS, OPTIMIZER, STAGE = GROUPS = ("weights", "optimizer", "stage")

ROW_SLOTS = ("exp_avg", "exp_avg_sq", "state1", "state2")
"""Moments with one value per value of the parameter: their rows are the parameter's rows."""

STEP = "step"
"""Number of updates, which is the same for all rows of a parameter."""


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a tensor in one file.

    Attributes:
        file: name of the file.
        start: first row.
        rows: number of rows; a scalar has one.
        dtype: name of torch's dtype.
    """

    file: str
    start: int
    rows: int
    dtype: str

    @property
    def end(self) -> int:
        """Row after the last one."""
        return self.start + self.rows


@dataclass(frozen=True)
class Entry:
    """A tensor of a checkpoint.

    Attributes:
        shape: of the whole tensor. None for what belongs to the rows of a moment's piece, such as
            the scales of its 8-bit blocks: each piece is read whole, or not at all.
        pieces: in the order of their rows.
    """

    shape: tuple[int, ...] | None
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Index:
    """Content of `index.json`.

    Attributes:
        tensors: group -> name -> tensor.
        sha256: file -> hash of its content, for all files but the index.
        format: of the checkpoint.
    """

    tensors: dict[str, dict[str, Entry]]
    sha256: dict[str, str]
    format: int = FORMAT

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> whole shape of each parameter."""
        return {name: tuple(e.shape or ()) for name, e in self.tensors[WEIGHTS].items()}

    def files_of(self, *groups: str) -> list[str]:
        """Files that hold tensors of these groups."""
        entries = (entry for group in groups for entry in self.tensors[group].values())
        return sorted({piece.file for entry in entries for piece in entry.pieces})

    def to_json(self) -> str:
        """Serialize, for `index.json`."""
        groups = {
            group: {name: asdict(entry) for name, entry in entries.items()}
            for group, entries in self.tensors.items()
        }
        return json.dumps({"format": self.format, **groups, "sha256": self.sha256})


def read_index(path: Path) -> Index:
    """Read the index of a checkpoint, or make it of the headers of files of format 3.

    Raises:
        OSError: a file cannot be read.
        ValueError: the index is damaged or of another version, or rows are missing.
        LookupError: the index lacks a part.
    """
    if not (path / INDEX).exists() and (path / STATE).exists():
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        if isinstance(state, dict) and state.get("format") == WHOLE_FILES_FORMAT:
            return _index_of_headers(path, state["sha256"])
    try:
        stored = json.loads((path / INDEX).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{INDEX} is half-written or damaged") from error
    require_format(stored)
    index = Index(
        {group: _entries(stored[group]) for group in GROUPS}, dict(stored["sha256"]), FORMAT
    )
    _require_complete(index)
    return index


def require_format(stored: Any) -> None:
    """Refuse the JSON of a checkpoint that this version does not read.

    Raises:
        ValueError: the format is unknown.
    """
    found = stored.get("format") if isinstance(stored, dict) else None
    if found not in (WHOLE_FILES_FORMAT, FORMAT):
        raise ValueError(
            f"format {found}, and this version reads {WHOLE_FILES_FORMAT} and {FORMAT}; "
            "continue it with the version of rlhf that wrote it"
        )


def _entries(stored: Mapping[str, Any]) -> dict[str, Entry]:
    return {
        name: Entry(
            None if entry["shape"] is None else tuple(entry["shape"]),
            tuple(Piece(**piece) for piece in entry["pieces"]),
        )
        for name, entry in stored.items()
    }


def _require_complete(index: Index) -> None:
    """Check that the pieces of each tensor are all its rows, once each, in files that are named."""
    for entries in index.tensors.values():
        for name, entry in entries.items():
            unknown = {piece.file for piece in entry.pieces} - index.sha256.keys()
            if unknown:
                raise ValueError(f"{INDEX} has no hash of {min(unknown)}, which holds {name}")
            if entry.shape is not None:
                _require_all_rows(name, entry.shape, entry.pieces)


def _require_all_rows(name: str, shape: tuple[int, ...], pieces: tuple[Piece, ...]) -> None:
    row = 0
    for piece in pieces:
        if piece.start != row:
            raise ValueError(f"{INDEX} is damaged: rows {row} to {piece.start} of {name}")
        row = piece.end
    if row != count_rows(shape):
        raise ValueError(f"{INDEX} is damaged: {row} rows of {name}, which has {count_rows(shape)}")


def count_rows(shape: tuple[int, ...]) -> int:
    """Rows of a tensor; a scalar has one."""
    return shape[0] if shape else 1


@dataclass
class IndexBuilder:
    """Collects the pieces that all ranks have written.

    Attributes:
        pieces: (group, name) -> pieces.
        shapes: (group, name) -> whole shape, or None.
    """

    pieces: dict[tuple[str, str], list[Piece]] = field(default_factory=dict)
    shapes: dict[tuple[str, str], tuple[int, ...] | None] = field(default_factory=dict)

    def add(self, group: str, name: str, shape: Iterable[int] | None, piece: Piece) -> None:
        """Add a piece of a tensor."""
        self.pieces.setdefault((group, name), []).append(piece)
        self.shapes[group, name] = None if shape is None else tuple(shape)

    def build(self, sha256: dict[str, str], found_format: int = FORMAT) -> Index:
        """Return the index of all pieces.

        Raises:
            ValueError: rows of a tensor are missing, or there twice.
        """
        tensors: dict[str, dict[str, Entry]] = {group: {} for group in GROUPS}
        for (group, name), pieces in self.pieces.items():
            ordered = tuple(sorted(pieces, key=lambda piece: piece.start))
            tensors[group][name] = Entry(self.shapes[group, name], ordered)
        index = Index(tensors, sha256, found_format)
        _require_complete(index)
        return index


def _index_of_headers(path: Path, sha256: dict[str, str]) -> Index:
    """Describe a checkpoint of format 3, whose files hold whole tensors."""
    builder = IndexBuilder()
    rows: dict[str, int] = {}
    for group in GROUPS:
        file = f"{group}.safetensors"
        if file not in sha256:
            continue
        with safe_open(path / file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (not a dictionary)
                header = stored.get_slice(name)
                shape = tuple(header.get_shape())
                dtype = str(DTYPES[header.get_dtype()]).removeprefix("torch.")
                if group == WEIGHTS:
                    rows[name] = count_rows(shape)
                parameter, _, slot = name.rpartition("/")
                bound = group == OPTIMIZER and slot not in (*ROW_SLOTS, STEP)
                count = rows[parameter] if bound else count_rows(shape)
                builder.add(group, name, None if bound else shape, Piece(file, 0, count, dtype))
    return builder.build(dict(sha256), WHOLE_FILES_FORMAT)


def require_hashes(path: Path, sha256: Mapping[str, str], names: Iterable[str]) -> None:
    """Check files of a checkpoint against their hashes.

    Raises:
        ValueError: a file is missing or damaged.
    """
    for name in names:
        if not (path / name).is_file():
            raise ValueError(f"{name} is missing; all files that {INDEX} names are needed")
        if hash_file(path / name) != sha256[name]:
            raise ValueError(f"{name} is damaged: its content is not what was written")
