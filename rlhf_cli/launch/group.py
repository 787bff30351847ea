"""How a process joins the other ranks of a run: connection, watch, process group."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rlhf_cli.config.rank_env import RankEnv
from rlhf_cli.errors import ConfigError, RankFailed, RlhfError, first_line
from rlhf_cli.launch.worker import Task
from rlhf_cli.watchdog.watch import Watch, watched

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

CONNECT = timedelta(minutes=30)
"""How long a rank waits for the others to start: torch's own limit. A queue may start the machines
of a job one after the other."""

WAIT = timedelta(days=2)
"""How long ranks wait for rank 0 to tokenize the rows; the watch ends them if rank 0 ends."""

RESOLVE_SECONDS = 60.0
"""How long a host name may be unknown: names of machines that were just started appear late."""


def connect(own: RankEnv) -> Store:
    """Open the key-value store through which the ranks find each other.

    Raises:
        ConfigError: MASTER_ADDR and MASTER_PORT are missing, or this machine does not know the
            name.
        RlhfError: the store did not answer in time.
    """
    from rlhf_cli.distributed.process_group import rendezvous_store

    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not (address and port):
        raise ConfigError(
            "MASTER_ADDR, MASTER_PORT: not set, though RANK and WORLD_SIZE are; need the host name "
            "of the first machine and a free port of it. Start with torchrun, which sets them"
        )
    _require_known(address)
    try:
        store = rendezvous_store("env://", own.rank, own.world_size, CONNECT)
    except RuntimeError as error:
        raise RlhfError(
            f"MASTER_ADDR: no answer from {address}:{port} to {socket.gethostname()} "
            f"({first_line(error)}). Check that rank 0 runs there and that no firewall is between"
        ) from error
    store.set_timeout(WAIT)
    return store


def _require_known(address: str) -> None:
    deadline = time.monotonic() + RESOLVE_SECONDS
    while True:
        try:
            socket.getaddrinfo(address, None)
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"MASTER_ADDR: got {address}, a name that {socket.gethostname()} does not know "
                    f"({error.strerror}); need the first machine's address. Try its IP address: "
                    "torchrun --master-addr=ADDRESS, or --rdzv-endpoint=ADDRESS:PORT"
                ) from error
        time.sleep(1)


@contextmanager
def joined(
    own: RankEnv, say: Callable[[str], None], end: Callable[[RankFailed], None]
) -> Iterator[Store]:
    """Connect to the other ranks and watch them inside the block.

    Args:
        own: rank of this process.
        say: prints what the watch finds.
        end: ends this process where the main thread is stuck in a collective call.
    """
    store = connect(own)
    with watched(Watch(store, own.rank, own.world_size, say, end)):
        yield store


def run_task(task: Task, own: RankEnv, store: Store) -> dict[str, Any]:
    """Create the process group and run this rank's part of a task."""
    from rlhf_cli.distributed.process_group import (
        destroy_process_group,
        init_process_group,
        raising_rank_failed_in_torch,
    )

    init_process_group(store, own.rank, own.world_size, own.local_rank)
    with raising_rank_failed_in_torch():
        summary = task.run()
    destroy_process_group()
    return summary
