"""Runs under `torchrun`, `accelerate launch` or srun: rank 0 is the command line, others wait."""

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import Any

from rlhf_cli.errors import ConfigError, Interrupted
from rlhf_cli.launch.slurm.ranks import set_rank_variables
from rlhf_cli.launch.worker import RankEnv, Task, build_report, read_rank_env, redirect_output
from rlhf_cli.registry import COMMANDS
from rlhf_cli.runs.log import redact, redacted
from rlhf_cli.runs.run_files import RANK_LOGS

TIMEOUT = timedelta(days=2)
"""How long ranks wait for rank 0, which may have to tokenize first."""

GRACE_SECONDS = 10.0
"""Time that a failed rank gives rank 0, which often has the same error, to record it."""

MESSAGE = "rlhf/task"

_sent = Event()
"""Set once rank 0 has sent the other ranks their task or exit code."""


def read_launcher_env(argv: list[str]) -> RankEnv | None:
    """Rank of this process if another launcher started several of a training command."""
    trains = argv[:1] and argv[0] in COMMANDS and COMMANDS[argv[0]].trains
    if not trains:
        return None
    set_rank_variables()
    return read_rank_env()


def require_several(given: Mapping[str, str] = os.environ) -> None:
    """Refuse a single process that `accelerate launch` started in place of several.

    With `--cpu` it starts one for any `--num_processes`, and the address of rank 0 is all that it
    passes on of them.

    Raises:
        ConfigError: so it is.
    """
    if given.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in given and "RANK" not in given:
        raise ConfigError(
            "accelerate launch: with --cpu it starts a single process whatever --num_processes "
            "says. Try --multi_gpu in place of --cpu, which works without GPUs too, or "
            "rlhf with launch.processes=2"
        )


def run_worker(own: RankEnv) -> int:
    """Wait for the task that rank 0 sends, and run this rank's part of it.

    Returns:
        Exit code; that of rank 0 if it started no run.
    """
    from rlhf_cli.distributed import destroy_process_group, init_process_group, rendezvous_store

    store = rendezvous_store("env://", own.rank, own.world_size, TIMEOUT)
    store.wait([MESSAGE], TIMEOUT)
    message = json.loads(store.get(MESSAGE))
    init_process_group(store, own.rank, own.world_size, own.local_rank)
    if "exit" in message:
        return int(message["exit"])
    task = Task(**message)
    stderr = redirect_output(Path(task.out), own.rank)
    try:
        with redacted():
            task.run()
    except BaseException as error:
        report = build_report(error, own.rank)
        text = f"error: {report.message}\n" if report.kind else report.traceback
        print(f"rank {own.rank}: {redact(text)}", end="", file=stderr, flush=True)
        return _end_after_rank_0(report.exit_code)
    destroy_process_group()
    return 0


def _end_after_rank_0(code: int) -> int:
    """Let rank 0 record why the run ended, and return the exit code of this rank.

    The launcher ends rank 0 as soon as another rank fails. An interruption is no failure.
    """
    if code == Interrupted.exit_code:
        return 0
    with suppress(KeyboardInterrupt):  # rank 0 has ended, and so the launcher ends this rank
        time.sleep(GRACE_SECONDS)
    return code


def run_main(task: Task, own: RankEnv) -> dict[str, Any]:
    """Prepare a run, send the task to the other ranks, and run rank 0's part of it."""
    from rlhf_cli.distributed import destroy_process_group

    if _sent.is_set():
        raise ConfigError("several runs: a launcher starts processes for one; start each by itself")
    processes = task.tree["launch"]["processes"]
    if processes not in (0, 1, own.world_size):
        raise ConfigError(
            f"launch.processes: got {processes}, but the launcher started {own.world_size} "
            "processes; leave the key out"
        )
    task.prepare()
    (Path(task.out) / RANK_LOGS).mkdir(exist_ok=True)
    _send(task.to_json(), own)
    summary = task.run()
    destroy_process_group()
    return summary


def release_workers(own: RankEnv, code: int) -> None:
    """End the other ranks with rank 0's exit code if it has started no run."""
    from rlhf_cli.distributed import destroy_process_group

    if not _sent.is_set():
        _send(json.dumps({"exit": code}), own)
        destroy_process_group()


def _send(text: str, own: RankEnv) -> None:
    from rlhf_cli.distributed import init_process_group, rendezvous_store

    store = rendezvous_store("env://", own.rank, own.world_size)
    store.set(MESSAGE, text)
    _sent.set()
    init_process_group(store, own.rank, own.world_size, own.local_rank)
