"""Files of a checkpoint: writing the rows that a rank holds, and reading the rows that it needs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlhf_cli.distributed.shards import ShardLayout
from rlhf_cli.runs.digest import hash_file
from rlhf_cli.train.checkpoint_index import (
    OPTIMIZER,
    ROW_SLOTS,
    STAGE,
    STEP,
    WEIGHTS,
    Entry,
    Index,
    IndexBuilder,
    Piece,
)
from rlhf_cli.train.optim import MasterAdamW


@dataclass(frozen=True)
class OwnPiece:
    """Rows of a tensor that this rank writes.

    Attributes:
        tensor: the rows.
        shape: of the whole tensor; None as in `Entry`.
        start: first row.
        rows: number of rows.
    """

    tensor: Tensor
    shape: tuple[int, ...] | None
    start: int
    rows: int


Own = dict[str, dict[str, OwnPiece]]
"""Group -> name -> rows that this rank writes; groups without any are missing."""


def select_own(
    optimizer: MasterAdamW,
    tensors: Mapping[str, Tensor],
    layouts: Mapping[str, ShardLayout],
) -> Own:
    """Select what this rank writes: its rows, where no other rank writes the same ones.

    Args:
        optimizer: holds masters, moments, and the layouts of both.
        tensors: of the stage.
        layouts: of `tensors`.
    """
    own: Own = {
        WEIGHTS: _rows(optimizer.masters, optimizer.layouts),
        OPTIMIZER: _moments(optimizer),
        STAGE: _rows(tensors, layouts),
    }
    return {group: pieces for group, pieces in own.items() if pieces}


def _writes(layout: ShardLayout) -> bool:
    return layout.writes and (layout.rows > 0 or layout.is_whole)


def _rows(tensors: Mapping[str, Tensor], layouts: Mapping[str, ShardLayout]) -> dict[str, OwnPiece]:
    return {
        name: _piece(tensor, layouts[name])
        for name, tensor in tensors.items()
        if _writes(layouts[name])
    }


def _piece(tensor: Tensor, layout: ShardLayout) -> OwnPiece:
    return OwnPiece(tensor.detach(), layout.shape, layout.start, layout.rows)


def _moments(optimizer: MasterAdamW) -> dict[str, OwnPiece]:
    found = {}
    for key, value in optimizer.moments().items():
        name, _, slot = key.rpartition("/")
        layout = optimizer.layouts[name]
        if not _writes(layout):
            continue
        if slot in ROW_SLOTS:
            found[key] = _piece(value, layout)
        elif slot == STEP:
            if layout.start == 0:  # once, beside the first rows
                found[key] = OwnPiece(value.detach(), (), 0, 1)
        else:
            found[key] = OwnPiece(value.detach(), None, layout.start, layout.rows)
    return found


def copy_to_host(own: Own) -> Own:
    """Copy what this rank writes into memory of the host that no later step changes."""
    return {
        group: {
            name: OwnPiece(p.tensor.to("cpu", copy=True), p.shape, p.start, p.rows)
            for name, p in pieces.items()
        }
        for group, pieces in own.items()
    }


def file_name(group: str, number: int, count: int) -> str:
    """Name of the file of a group that the writer `number` of `count` writes."""
    if count == 1:
        return f"{group}.safetensors"
    return f"{group}-{number:05d}-of-{count:05d}.safetensors"


@dataclass
class WrittenFiles:
    """The files that one rank has written, or why it could not.

    Attributes:
        sha256: file -> hash.
        pieces: JSON values: group, name, shape and piece of each tensor.
        error: empty if all were written.
    """

    sha256: dict[str, str] = field(default_factory=dict)
    pieces: list[list[Any]] = field(default_factory=list)
    error: str = ""

    def add_to(self, builder: IndexBuilder) -> None:
        """Add these pieces to the index."""
        for group, name, shape, piece in self.pieces:
            builder.add(group, name, shape, Piece(*piece))


def write_own(folder: Path, own: Own, number: int, count: int) -> WrittenFiles:
    """Write this rank's files and flush them to disk.

    Args:
        folder: that exists.
        own: what this rank writes.
        number: of this rank among those that write, from 0.
        count: number of ranks that write.

    Raises:
        OSError: the disk is full or read-only.
        SafetensorError: the same, as safetensors says it.
    """
    written = WrittenFiles()
    for group, pieces in own.items():
        name = file_name(group, number, count)
        save_file({key: piece.tensor.contiguous() for key, piece in pieces.items()}, folder / name)
        flush_file(folder / name)
        written.sha256[name] = hash_file(folder / name)
        for key, piece in pieces.items():
            dtype = str(piece.tensor.dtype).removeprefix("torch.")
            values = [name, piece.start, piece.rows, dtype]
            written.pieces.append([group, key, piece.shape, values])
    return written


def flush_file(path: Path) -> None:
    """Flush a file's content to disk."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def flush_entries(folder: Path) -> None:
    """Flush the entries of a folder to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class CheckpointReader:
    """Reads rows of a checkpoint's tensors; a context that closes the files at its end.

    Only the rows that are asked for are read, and each is copied: the files may be removed while
    the tensors live.

    Args:
        path: the checkpoint.
        index: of it.
    """

    def __init__(self, path: Path, index: Index) -> None:
        self.path, self.index = path, index
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._files = {}
        self._stack.close()

    def rows(self, group: str, name: str, start: int, rows: int) -> Tensor:
        """Rows `start` to `start + rows` of a tensor, on the CPU, wherever they lie.

        Raises:
            LookupError: there is no such tensor.
        """
        entry = self.index.tensors[group][name]
        if not entry.shape:
            return self.of_piece(entry.pieces[0], name, 0, 1)
        parts = [
            self.of_piece(piece, name, first, last - first)
            for piece in entry.pieces
            if (first := max(start, piece.start)) < (last := min(start + rows, piece.end))
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0] if parts else _no_rows(entry)

    def of_piece(self, piece: Piece, name: str, start: int, rows: int) -> Tensor:
        """Rows of a tensor, from a piece that holds them; a scalar is read whole."""
        file = self._open(piece.file)
        header = file.get_slice(name)
        shape = header.get_shape()
        if not shape:
            return _copy(file.get_tensor(name))
        first = start - piece.start
        if shape[0] < first + rows:
            raise ValueError(f"{piece.file}: {name} has {shape[0]} rows, not {piece.rows}")
        return _copy(header[first : first + rows])

    def whole_piece(self, piece: Piece, name: str) -> Tensor:
        """A tensor that belongs to a piece, such as the scales of its 8-bit blocks."""
        return _copy(self._open(piece.file).get_tensor(name))

    def _open(self, file: str) -> Any:
        if file not in self._files:
            self._files[file] = self._stack.enter_context(safe_open(self.path / file, "pt"))
        return self._files[file]


def _copy(tensor: Tensor) -> Tensor:
    return tensor.clone()  # safetensors maps the file, which may be removed


def _no_rows(entry: Entry) -> Tensor:
    dtype = getattr(torch, entry.pieces[0].dtype) if entry.pieces else torch.float32
    return torch.empty((0, *(entry.shape or ())[1:]), dtype=dtype)
