"""Moments of the optimizer from a checkpoint, for the rows that a rank holds.

Moments in 32 bits are rows like those of the weights. Those of 8-bit AdamW are quantized in blocks
of 256 values of the piece that a rank held (Dettmers et al. 2022, arXiv:2110.02861), and pieces of
less than 4096 values are kept in 32 bits. A rank that holds the rows of one piece takes them bit
for bit. For other rows the blocks are dequantized, and quantized anew: the moments are then those
of the checkpoint within the rounding to 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from rlhf_cli.distributed.shards import ShardLayout
from rlhf_cli.train.checkpoint_files import CheckpointReader
from rlhf_cli.train.checkpoint_index import OPTIMIZER, ROW_SLOTS, STEP, Entry, Piece

BLOCK = 256
"""Values that share a scale."""

_STATES = ("1", "2")
"""First and second moment: `state1`, `absmax1` and `qmap1`; the second is never negative."""

Slots = dict[str, Entry]


def read_moments(
    reader: CheckpointReader, layouts: Mapping[str, ShardLayout], eight_bit_from: float
) -> Iterator[tuple[str, Tensor]]:
    """Yield `name/slot` and value of each moment of this rank's rows, one parameter at a time.

    Args:
        reader: of the checkpoint.
        layouts: parameter -> rows that this rank holds.
        eight_bit_from: number of values from which moments are kept in 8 bits.

    Raises:
        ValueError: a kind of value cannot be divided anew.
    """
    slots: dict[str, Slots] = {name: {} for name in layouts}
    for key, entry in reader.index.tensors[OPTIMIZER].items():
        name, _, slot = key.rpartition("/")
        slots[name][slot] = entry
    for name, layout in layouts.items():
        if slots[name] and layout.rows:
            found = _Moments(reader, name, layout, slots[name]).read(eight_bit_from)
            yield from ((f"{name}/{slot}", value) for slot, value in found.items())


class _Moments:
    """Moments of one parameter."""

    def __init__(
        self, reader: CheckpointReader, name: str, layout: ShardLayout, slots: Slots
    ) -> None:
        self.reader, self.name, self.layout, self.slots = reader, name, layout, slots

    def read(self, eight_bit_from: float) -> dict[str, Tensor]:
        """Slot -> value for this rank's rows."""
        of_pieces = {s: e for s, e in self.slots.items() if e.shape is None}
        eight_bit = any(slot.startswith("state") for slot in self.slots)
        if not eight_bit or self._same_rows() is not None:
            return self._rows() | self._of_piece(of_pieces)
        unknown = [s for s in of_pieces if s[:-1] not in ("absmax", "qmap")]
        if unknown:
            raise ValueError(f"{self.name}: {unknown[0]} cannot be divided among other ranks")
        return self._divided_anew(eight_bit_from)

    def _same_rows(self) -> Piece | None:
        """The piece that holds exactly the rows of this rank."""
        pieces = next(e for s, e in self.slots.items() if s in ROW_SLOTS).pieces
        wanted = (self.layout.start, self.layout.rows)
        return next((p for p in pieces if (p.start, p.rows) == wanted), None)

    def _rows(self) -> dict[str, Tensor]:
        start, rows = self.layout.start, self.layout.rows
        return {
            slot: self.reader.rows(OPTIMIZER, f"{self.name}/{slot}", start, rows)
            for slot in self.slots
            if slot in (*ROW_SLOTS, STEP)
        }

    def _of_piece(self, slots: Slots) -> dict[str, Tensor]:
        """What belongs to the piece with this rank's rows."""
        return {
            slot: self.reader.whole_piece(piece, f"{self.name}/{slot}")
            for slot, entry in slots.items()
            for piece in entry.pieces
            if piece.start == self.layout.start
        }

    def _divided_anew(self, eight_bit_from: float) -> dict[str, Tensor]:
        found = {STEP: self.reader.rows(OPTIMIZER, f"{self.name}/{STEP}", 0, 1)}
        for number in _STATES:
            values = self._dequantized(number)
            if values.numel() < eight_bit_from:
                found[f"state{number}"] = values
            else:
                found |= _quantize(values, number)
        return found

    def _dequantized(self, number: str) -> Tensor:
        """This rank's rows of a moment, in fp32."""
        entry = self.slots[f"state{number}"]
        first, last = self.layout.start, self.layout.start + self.layout.rows
        parts = [
            self._part(piece, number, max(first, piece.start), min(last, piece.end))
            for piece in entry.pieces
            if max(first, piece.start) < min(last, piece.end)
        ]
        return torch.cat(parts) if parts else torch.empty((0, *self.layout.shape[1:]))

    def _part(self, piece: Piece, number: str, first: int, last: int) -> Tensor:
        """Rows `first` to `last` of a piece, in fp32; only their blocks are read."""
        key = f"{self.name}/state{number}"
        if piece.dtype != "uint8":
            return self.reader.of_piece(piece, key, first, last - first)
        width = math.prod(self.layout.shape[1:])
        begin, end = (first - piece.start) * width, (last - piece.start) * width
        block, stop = begin // BLOCK, -(-end // BLOCK)
        top = block * BLOCK // width  # row of the piece in which the first block begins
        bottom = min(piece.rows, -(-stop * BLOCK // width))
        stored = self.reader.of_piece(piece, key, piece.start + top, bottom - top)
        blocks = stored.flatten()[block * BLOCK - top * width : stop * BLOCK - top * width]
        scales, qmap = (self._beside(piece, f"{kind}{number}") for kind in ("absmax", "qmap"))
        values = _dequantize(blocks, scales[block:stop], qmap)
        inside = values[begin - block * BLOCK : end - block * BLOCK]
        return inside.reshape(last - first, *self.layout.shape[1:])

    def _beside(self, piece: Piece, slot: str) -> Tensor:
        """What belongs to a piece of 8-bit values."""
        of_piece = next(p for p in self.slots[slot].pieces if p.start == piece.start)
        return self.reader.whole_piece(of_piece, f"{self.name}/{slot}")


def _dequantize(blocks: Tensor, scales: Tensor, qmap: Tensor) -> Tensor:
    from bitsandbytes import functional

    found: Tensor = functional.dequantize_blockwise(
        blocks.contiguous(), absmax=scales.contiguous(), code=qmap, blocksize=BLOCK
    )
    return found


def _quantize(values: Tensor, number: str) -> dict[str, Tensor]:
    """Quantize a moment as bitsandbytes' optimizers do, with a map of their own for each."""
    from bitsandbytes import functional

    qmap = functional.create_dynamic_map(signed=number == "1")
    state, found = functional.quantize_blockwise(values.contiguous(), code=qmap, blocksize=BLOCK)
    return {f"state{number}": state, f"absmax{number}": found.absmax, f"qmap{number}": qmap}
