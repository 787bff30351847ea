"""Runs under `torchrun`, `accelerate launch` or srun: rank 0 is the command line, others wait."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rlhf_cli.config.rank_env import RankEnv, read_rank_env
from rlhf_cli.console import logger
from rlhf_cli.errors import ConfigError, Interrupted, RankFailed, RlhfError
from rlhf_cli.launch.group import joined, run_task
from rlhf_cli.launch.same_start import compare_starts
from rlhf_cli.launch.slurm.ranks import set_rank_variables
from rlhf_cli.launch.worker import ErrorReport, Task, build_report, redirect_output
from rlhf_cli.registry import COMMANDS
from rlhf_cli.runs import manifest
from rlhf_cli.runs.log import redact, redacted
from rlhf_cli.runs.run_files import RANK_LOGS
from rlhf_cli.watchdog.watch import reports_for_all, tell_end

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

GRACE_SECONDS = 10.0
"""Time that a failed rank gives rank 0, which often has the same error, to record it."""

TASK, PREPARED, READY, GO = "rlhf/task", "rlhf/prepared", "rlhf/ready/", "rlhf/go"
"""Keys of what ranks tell each other: rank 0 the task, and that the rows are tokenized, or in place
of each an exit code; every rank that its machine has the rows; rank 0 that all have."""


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


@dataclass
class _MainRank:
    """Rank 0 of a run: its connection to the others, and the folder of the run it started."""

    store: Store | None = None
    out: Path | None = None

    def send(self, key: str, values: dict[str, Any]) -> None:
        assert self.store is not None
        self.store.set(key, json.dumps(values))

    def end(self, error: RankFailed) -> None:
        """End the run where the main thread is stuck in a collective call."""
        if self.out is not None:
            manifest.fail(self.out, error)
        print(f"error: {redact(str(error))}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)


_main = _MainRank()


def run_command(own: RankEnv, command: Callable[[], int]) -> int:
    """Run the command line as rank 0, and end the other ranks with it.

    Args:
        own: rank 0 of the run.
        command: parses, checks and runs; prints its errors; returns the exit code.
    """
    try:
        with joined(own, logger.warning, _main.end) as store:
            _main.store = store
            code = command()
            if _main.out is None:  # it started no run
                _main.send(TASK, {"exit": code})
            return code
    except RlhfError as error:  # the others were not found
        print(f"error: {redact(str(error))}", file=sys.stderr, flush=True)
        return error.exit_code


def run_main(task: Task, own: RankEnv) -> dict[str, Any]:
    """Prepare a run, send the task to the other ranks, and run rank 0's part of it."""
    if _main.out is not None or _main.store is None:
        raise ConfigError("several runs: a launcher starts processes for one; start each by itself")
    processes = task.tree["launch"]["processes"]
    if processes not in (0, 1, own.world_size):
        raise ConfigError(
            f"launch.processes: got {processes}, but the launcher started {own.world_size} "
            "processes; leave the key out"
        )
    _main.out = Path(task.out)
    (_main.out / RANK_LOGS).mkdir(exist_ok=True)
    _main.send(TASK, asdict(task))
    try:
        _prepare(task, own, _main.store)
        return run_task(task, own, _main.store)
    except BaseException as error:
        tell_end(error)
        raise


def _prepare(task: Task, own: RankEnv, store: Store) -> None:
    try:
        compare_starts(store, own, task)
        task.prepare()
    except BaseException as error:
        _main.send(PREPARED, {"exit": build_report(error, own.rank).exit_code})
        raise
    _main.send(PREPARED, {})
    store.wait([f"{READY}{rank}" for rank in range(1, own.world_size)])
    store.set(GO, "")


def run_worker(own: RankEnv) -> int:
    """Wait for the task that rank 0 sends, and run this rank's part of it.

    Returns:
        Exit code; that of rank 0 if it started no run.
    """
    with os.fdopen(os.dup(2), "w", encoding="utf-8") as screen:
        ending = _Ending(own, screen)
        try:
            with redacted(), joined(own, ending.say, ending.from_watch) as store:
                try:
                    return _run_part(own, store)
                except BaseException as error:
                    tell_end(error)
                    return _end_after_rank_0(ending.report(error).exit_code)
        except RlhfError as error:  # the others were not found
            return ending.report(error).exit_code


def _end_after_rank_0(code: int) -> int:
    """Let rank 0 record why the run ended, and return the exit code of this rank.

    The launcher ends rank 0 as soon as another rank fails. An interruption is no failure.
    """
    if code == Interrupted.exit_code:
        return 0
    with suppress(KeyboardInterrupt):  # rank 0 has ended, and so the launcher ends this rank
        time.sleep(GRACE_SECONDS)
    return code


def _run_part(own: RankEnv, store: Store) -> int:
    try:
        sent = _receive(store, TASK)
    except KeyboardInterrupt:  # rank 0 got the signal too, and tells it
        return Interrupted.exit_code
    if "exit" in sent:
        return int(sent["exit"])
    task = Task(**sent)
    compare_starts(store, own, task)
    redirect_output(Path(task.out), own.rank)
    prepared = _receive(store, PREPARED)
    if "exit" in prepared:
        return int(prepared["exit"])
    _prepare_machine(task, own, store)
    run_task(task, own, store)
    return 0


def _prepare_machine(task: Task, own: RankEnv, store: Store) -> None:
    """Tokenize on another machine than rank 0's, unless its cache has the tokens."""
    if own.local_rank == 0:
        task.prepare()
    store.set(f"{READY}{own.rank}", "")
    store.wait([GO])


def _receive(store: Store, key: str) -> dict[str, Any]:
    store.wait([key])
    values: dict[str, Any] = json.loads(store.get(key))
    return values


@dataclass(frozen=True)
class _Ending:
    """How a rank other than 0 tells what it finds and why it ends.

    An error that another rank caused stands in this rank's log, and on the screen only where the
    watch chose this rank to speak for all.
    """

    own: RankEnv
    screen: TextIO

    def say(self, text: str) -> None:
        self._print(text, everywhere=True)

    def report(self, error: BaseException) -> ErrorReport:
        report = build_report(error, self.own.rank)
        text = f"error: {report.message}" if report.kind else report.traceback.rstrip()
        self._print(text, everywhere=not report.secondary or reports_for_all())
        return report

    def _print(self, text: str, *, everywhere: bool) -> None:
        """Print a line into this rank's log, once it has one, and on the screen."""
        has_log = not os.path.samestat(os.fstat(2), os.fstat(self.screen.fileno()))
        streams = [sys.stderr] * has_log + [self.screen] * everywhere
        for stream in streams:
            print(f"rank {self.own.rank}: {redact(text)}", file=stream, flush=True)

    def from_watch(self, error: RankFailed) -> None:
        os._exit(self.report(error).exit_code)
