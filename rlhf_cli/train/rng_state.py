"""State of a process's random number generators, and its transfer to other numbers of processes."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class RngState:
    """State of the random number generators of one process.

    Attributes:
        tensors: torch's states, by device type.
        values: states of `random` and NumPy, as JSON values.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def read_rng_state() -> RngState:
    """Random states of this process."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    return RngState(
        tensors,
        {"python": random.getstate(), "numpy": _numpy_values(np.random.get_state(legacy=True))},
    )


def restore_rng_state(state: RngState) -> None:
    """Restore the random states of this process."""
    torch.set_rng_state(state.tensors["cpu"])
    if torch.cuda.is_available() and "cuda" in state.tensors:
        torch.cuda.set_rng_state(state.tensors["cuda"])
    version, internal, gauss = state.values["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state.values["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))


def state_of_rank(saved: Sequence[RngState], rank: int) -> RngState:
    """Random states with which a rank continues a run of any number of processes.

    A rank takes the states that the rank of its number had. One that was not there gets states of
    its own, which depend on the saved ones and on its number alone.

    Args:
        saved: states of the ranks of the checkpoint, in their order; at least one.
        rank: of the process that continues.
    """
    if rank < len(saved):
        return saved[rank]
    origin = saved[rank % len(saved)].tensors["cpu"].numpy().tobytes()
    digest = hashlib.sha256(origin + f"rank {rank}".encode()).digest()
    return _seeded(int.from_bytes(digest[:8], "big") >> 1)  # torch takes seeds of 63 bits


def _seeded(seed: int) -> RngState:
    """States of generators that were seeded alike."""
    tensors = {"cpu": torch.Generator().manual_seed(seed).get_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.Generator("cuda").manual_seed(seed).get_state()
    numpy_state = np.random.RandomState(seed % 2**32).get_state(legacy=True)
    values = {
        "python": random.Random(seed).getstate(),
        "numpy": _numpy_values(numpy_state),
    }
    return RngState(tensors, values)


def _numpy_values(state: Any) -> list[Any]:
    name, keys, *rest = state
    return [name, np.asarray(keys).tolist(), *rest]
