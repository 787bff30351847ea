"""The processes that train one model together, and what they say to each other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch import distributed as dist
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from rlhf_cli.errors import RankFailed, first_line

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run; alone, every call is free and no group is needed.

    All ranks make the same calls in the same order. Results are the same on all of them, bit for
    bit: sums are taken in the order of the ranks, or once and then handed out.

    Attributes:
        rank: from 0; rank 0 writes files and speaks.
        size: processes of the run.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this one writes and speaks."""
        return self.rank == 0

    def block(self, count: int) -> range:
        """This rank's part of `count` items: contiguous, and as large as the others' but for one.

        What is cut by number elsewhere, as responses into minibatches, has items on every rank.
        """
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def add_in_place(self, tensor: Tensor) -> None:
        """Replace a contiguous tensor by its sum over all ranks."""
        if self.size > 1:
            with _together():
                dist.all_reduce(tensor)

    def gather(self, value: T) -> list[T]:
        """The JSON value of each rank; tuples come back as lists."""
        if self.size == 1:
            return [value]
        return [json.loads(text) for text in self._gather_bytes(json.dumps(value).encode())]

    def gather_tensors(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """The named tensors of each rank, whose shapes may differ.

        Returns:
            One dictionary a rank. Of several ranks the tensors are on the CPU; alone, as given.
        """
        if self.size == 1:
            return [dict(tensors)]
        own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        return [load(data) for data in self._gather_bytes(save(own))]

    def concatenate(self, tensor: Tensor) -> Tensor:
        """[N of all ranks, ...]: the tensors [N, ...] of all ranks, in the order of the ranks."""
        if self.size == 1:
            return tensor
        parts = [part["rows"] for part in self.gather_tensors({"rows": tensor})]
        return torch.cat(parts).to(tensor.device)

    def _gather_bytes(self, data: bytes) -> list[bytes]:
        """The bytes of each rank. Nothing is unpickled: what arrives cannot run code."""
        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
        with _together():
            dist.all_gather(sizes, torch.tensor([len(data)]))
        counts = [int(size) for size in sizes]
        padded = bytearray(data).ljust(max(counts), b"\0")
        parts = [torch.empty(len(padded), dtype=torch.uint8) for _ in range(self.size)]
        with _together():
            dist.all_gather(parts, torch.frombuffer(padded, dtype=torch.uint8))
        return [part[:count].numpy().tobytes() for part, count in zip(parts, counts, strict=True)]

    def add(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums by name over all ranks; a name that a rank lacks is 0 there."""
        total: dict[str, float] = {}
        for own in self.gather(dict(values)):
            for name, value in own.items():
                total[name] = total.get(name, 0) + value
        return total

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on one of them at least."""
        if self.size == 1:
            return flag
        count = torch.tensor([int(flag)])
        self.add_in_place(count)
        return bool(count)

    def on_main(self, act: Callable[[], object]) -> None:
        """Let rank 0 do something while the others wait.

        Raises:
            PeerLost: on the others, where it failed on rank 0, which raises its own error.
        """
        error: Exception | None = None
        if self.main:
            try:
                act()
            except Exception as raised:
                error = raised
        failed = self.any(error is not None)
        if error is not None:
            raise error
        if failed:
            raise RankFailed("rank 0 failed; its error tells why")


ALONE = Ranks()


def current_ranks() -> Ranks:
    """Those of the process group that was joined, else this process alone."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return ALONE


def meet(url: str, rank: int, size: int, patience: timedelta = timedelta(minutes=30)) -> Store:
    """Where ranks find each other.

    Args:
        url: `file://PATH` on one machine, or `env://`: what MASTER_ADDR and MASTER_PORT name.
        rank: of this process.
        size: processes that come.
        patience: how long to wait for what another rank leaves there.
    """
    store: Store
    store, _, _ = next(rendezvous(url, rank, size, timeout=patience))
    return store


def join(store: Store, rank: int, size: int, local_rank: int) -> None:
    """Form the process group: gloo for what lies on the CPU, NCCL for what lies on GPUs.

    torch's own set-up: Accelerate's takes two processes without a GPU for two runs of their own.
    """
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(local_rank)
    with _together():
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)


def leave() -> None:
    """Dissolve the process group, after a run that went well on all ranks."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """A call that needs all ranks fails where one is gone, whoever is to blame."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        text = f"another process of this run ended or does not answer ({first_line(error)})"
        raise RankFailed(text) from error
