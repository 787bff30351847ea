"""Tensors in safetensors files, of which a few rows or columns are read at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rlhf_cli.errors import ModelError, first_line
from rlhf_cli.models.stored_origin import Origin

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types of safetensors."""

OPEN_FILES = 4
"""Files that stay open; a model is read in the order of its names, mostly file by file."""


@dataclass(frozen=True, eq=False)
class FileTensor(Origin):
    """A tensor in a safetensors file.

    Attributes:
        file: that holds it.
        key: its name there.
        changed: time of the file's last change when the model was built, in nanoseconds.
    """

    file: Path
    key: str
    changed: int

    def whole(self) -> Tensor:
        """Read all of it."""
        return self._read(...)

    def rows(self, start: int, stop: int) -> Tensor:
        """Read a few rows."""
        return self._read(slice(start, stop))

    def columns(self, start: int, stop: int) -> Tensor:
        """Read a few columns."""
        return self._read((slice(None), slice(start, stop)))

    @property
    def by_rows(self) -> bool:
        """A file is read row by row."""
        return bool(self.shape)

    def _read(self, index: Any) -> Tensor:
        try:
            found: Tensor = _open(self.file, self.changed).get_slice(self.key)[index]
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"model.path: cannot read {self.key} of {self.file} ({first_line(error)}). Copy or "
                "fetch the weights again"
            ) from error
        return found


@lru_cache(OPEN_FILES)
def _open(file: Path, changed: int) -> Any:
    """Open a safetensors file; its pages belong to the system's cache, not to this process.

    Raises:
        ModelError: it is not the file that the model was built from.
    """
    if file.stat().st_mtime_ns != changed:
        raise ModelError(
            f"model.path: {file} was changed while the model was loaded; need weights that stay. "
            "Give the command again"
        )
    return safe_open(file, "pt")
