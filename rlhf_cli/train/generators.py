"""The state of every random generator, free of pickle."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Generators:
    """Where the generators of one process stand.

    Attributes:
        tensors: torch's, by device type.
        values: those of `random` and NumPy, as JSON values.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def read_generators() -> Generators:
    """Those of this process."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    name, keys, *rest = np.random.get_state(legacy=True)
    numpy_state = [name, np.asarray(keys).tolist(), *rest]
    return Generators(tensors, {"python": random.getstate(), "numpy": numpy_state})


def restore_generators(generators: Generators) -> None:
    """Put this process's generators where they were."""
    torch.set_rng_state(generators.tensors["cpu"])
    if torch.cuda.is_available() and "cuda" in generators.tensors:
        torch.cuda.set_rng_state(generators.tensors["cuda"])
    version, internal, gauss = generators.values["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = generators.values["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
