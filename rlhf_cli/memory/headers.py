"""Names, shapes and types of the tensors in safetensors files, from their headers alone."""

import json
import struct
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from rlhf_cli.errors import ConfigError

ITEM_SIZES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}

MAX_HEADER_BYTES = 100 << 20
"""Largest header that the format allows."""


@dataclass(frozen=True)
class TensorShape:
    """A tensor of a model: its name, shape and bytes per value."""

    name: str
    shape: tuple[int, ...]
    itemsize: int = 4

    @property
    def count(self) -> int:
        """Number of values."""
        return prod(self.shape)


def read_headers(folder: Path) -> list[TensorShape]:
    """Read the headers of all safetensors files in a folder; empty where it has none.

    Raises:
        ConfigError: a file is damaged.
    """
    found: list[TensorShape] = []
    for file in sorted(folder.glob("*.safetensors")):
        about = file.stat()
        found += _read_tensors(file, about.st_size, about.st_mtime_ns)
    return found


@lru_cache(maxsize=256)
def _read_tensors(file: Path, size: int, changed: int) -> tuple[TensorShape, ...]:
    """Tensors of a file; read again where its size or time of change differ."""
    try:
        header = _read_header(file)
        return tuple(
            TensorShape(name, tuple(entry["shape"]), ITEM_SIZES.get(entry["dtype"], 4))
            for name, entry in header.items()
            if name != "__metadata__"
        )
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise ConfigError(
            f"{file}: its header cannot be read ({error}); need whole safetensors files"
        ) from None


def _read_header(file: Path) -> dict[str, Any]:
    with file.open("rb") as handle:
        (size,) = struct.unpack("<Q", handle.read(8))
        if size > MAX_HEADER_BYTES:
            raise ValueError("it is too long")
        header: dict[str, Any] = json.loads(handle.read(size))
    return header
