"""The process group of a run, and the store in which its ranks find each other."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as dist
from torch._C._distributed_c10d import HashStore, TCPStore
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from rlhf_cli.errors import RankFailed, first_line
from rlhf_cli.watchdog.beats import count_collectives
from rlhf_cli.watchdog.watch import AGAIN, find_cause


def rendezvous_store(
    url: str, rank: int, world_size: int, timeout: timedelta = timedelta(minutes=30)
) -> Store:
    """Open the key-value store through which ranks find each other.

    Args:
        url: `file://PATH` on one machine, or `env://`, which reads MASTER_ADDR and MASTER_PORT.
        rank: of this process.
        world_size: number of processes.
        timeout: how long a read waits for another rank's write.
    """
    store: Store
    store, _, _ = next(rendezvous(url, rank, world_size, timeout=timeout))
    return store


def host_store() -> tuple[Store, int]:
    """Open a store for the ranks of this machine, and listen on a port of this machine alone.

    The system chooses the port, so that no other program can take it before the ranks use it.

    Returns:
        The store, with the keys of the ranks, and its port.
    """
    listening = socket.create_server(("127.0.0.1", 0))
    port = int(listening.getsockname()[1])
    store = TCPStore(
        "127.0.0.1",
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listening.detach(),
    )
    return store, port


def init_process_group(store: Store, rank: int, world_size: int, local_rank: int) -> None:
    """Create the process group: gloo for CPU tensors, NCCL for GPU tensors.

    Torch's own set-up is used: Accelerate's treats two processes without a GPU as two runs.
    """
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        # some clusters show each process its own GPU alone
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    with raising_rank_failed():
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)


def ensure_process_group() -> None:
    """Create a process group of this process alone, unless there is one."""
    if not dist.is_initialized():
        init_process_group(HashStore(), 0, 1, 0)


def destroy_process_group() -> None:
    """Destroy the process group after a run that succeeded on all ranks."""
    if dist.is_available() and dist.is_initialized():
        try:
            count_collectives()  # the watch tells the others these counts
        finally:
            dist.destroy_process_group()


@contextmanager
def raising_rank_failed() -> Iterator[None]:
    """Raise RankFailed where a collective call fails, as it does when another rank is gone."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        cause = find_cause() or "another process of this run ended or does not respond"
        raise RankFailed(f"{cause} ({first_line(error)}); {AGAIN}") from error


@contextmanager
def raising_rank_failed_in_torch() -> Iterator[None]:
    """Raise RankFailed for a failed collective call that torch makes by itself, as FSDP does.

    Other errors inside the block stay as they are.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_of_connection(error):
            raise
        with raising_rank_failed():
            raise


_CONNECTION_WORDS = ("gloo/", "NCCL", "Connection closed by peer", "Connection reset by peer")
"""Texts of gloo's errors, which have no class of their own, and of some of NCCL's."""


def _is_of_connection(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(
        word in str(error) for word in _CONNECTION_WORDS
    )
