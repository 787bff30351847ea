"""Run a stage in several processes: start the ranks on this machine and supervise them.

Torch's elastic agent starts and polls processes too, but it ends the others by SIGTERM as soon as
one has failed, so that the first error is often lost; it kills a run 30 s after Ctrl-C, which may
be in the middle of a checkpoint; it leaves the ranks alive where it is killed itself; it takes over
four signals of the process; and it shows a table of tracebacks where this shows one line. What is
taken from it is the store, whose port is never free for another program to take, and the variables
by which ranks find it.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from rlhf_cli.config.rank_env import RankEnv, read_rank_env
from rlhf_cli.console import logger
from rlhf_cli.cores import cores
from rlhf_cli.errors import ConfigError, Interrupted, RlhfError
from rlhf_cli.launch import torchrun
from rlhf_cli.launch.rank_process import SUMMARY, TASK
from rlhf_cli.launch.worker import ErrorReport, Task, read_report, threads_per_process
from rlhf_cli.runs import lock
from rlhf_cli.runs.run_files import RANK_LOGS
from rlhf_cli.watchdog.watch import AGAIN, last_phase

POLL_SECONDS = 0.1
GRACE_SECONDS = 10.0
"""Time for the other ranks to end after one has failed; then they get SIGTERM."""

KILL_SECONDS = 5.0
"""Time after SIGTERM until a rank that still runs gets SIGKILL."""

PROGRAM = "from rlhf_cli.launch.rank_process import run_rank; run_rank(folder)"
"""Python program of a rank; `folder` is the name of the temporary folder."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that the ranks get too; each stops the training after a checkpoint."""


def is_single_process(processes: int) -> bool:
    """Whether this process is the whole run."""
    return read_rank_env() is None and (processes == 1 or (processes == 0 and _gpus() < 2))


def count_processes(processes: int) -> int:
    """Number of processes of a run: those that another launcher started, on all machines.

    Without one they run on this machine.

    Args:
        processes: `launch.processes`.

    Raises:
        ConfigError: no other launcher started them, and they are more than this machine has GPUs,
            or without GPUs more than it has cores.
    """
    own = read_rank_env()
    if own is not None:
        return own.world_size
    return 1 if is_single_process(processes) else _world_size(processes)


def launch(stage: str, tree: dict[str, Any], out: Path) -> dict[str, Any]:
    """Prepare a run in this process, then train in several.

    Args:
        stage: name in the registry; the module of its runner also has `prepare(cfg, out)`, which
            does what ranks must not repeat.
        tree: the resolved configuration.
        out: the run folder, claimed.

    Returns:
        The summary for the manifest.
    """
    task = Task(stage, tree, str(out))
    own = read_rank_env()
    if own is not None:
        return torchrun.run_main(task, own)
    world_size = _world_size(tree["launch"]["processes"])
    task.prepare()
    logger.info(f"processes: {world_size}, {threads_per_process(world_size)} threads each")
    return run_ranks(task, world_size)


def _world_size(processes: int) -> int:
    gpus = _gpus()
    if gpus and processes > gpus:
        raise ConfigError(
            f"launch.processes: got {processes}, but there are {gpus} GPUs, one for each process. "
            f"Try launch.processes={gpus}"
        )
    most = max(2, cores())
    if not gpus and processes > most:  # two on one core wait for each other
        raise ConfigError(
            f"launch.processes: got {processes}, but there are {most} cores and no GPU; need at "
            f"most one process per core. Try launch.processes={most}"
        )
    return processes or gpus


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def run_ranks(task: Task, world_size: int) -> dict[str, Any]:
    """Run a prepared task in several processes on this machine.

    Returns:
        The summary that rank 0 wrote.

    Raises:
        RlhfError: the first error of a rank, or how a rank ended without a report.
        CheckpointError: another process took over the run folder; the ranks were killed.
    """
    from rlhf_cli.distributed.process_group import host_store

    logs = Path(task.out) / RANK_LOGS
    logs.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rlhf-") as name, ExitStack() as open_ranks:
        folder = Path(name)
        (folder / TASK).write_text(task.to_json(), encoding="utf-8")
        store, port = host_store()
        environments = [RankEnv(i, i, world_size, world_size) for i in range(world_size)]
        started = [_start(folder, env, port) for env in environments]
        ranks = [open_ranks.enter_context(rank) for rank in started]
        supervisor = Supervisor(ranks, Path(task.out), partial(last_phase, store))
        with supervisor.forward_signals():
            supervisor.wait()
        lock.require_owned(supervisor.out)
        reports = [report for i in range(world_size) if (report := read_report(folder, i))]
        error = supervisor.error(reports, logs)
        if error is not None:
            raise error
        summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        return summary


def _start(folder: Path, env: RankEnv, port: int) -> subprocess.Popen[bytes]:
    variables = {
        **os.environ,
        **env.variables(),
        "OMP_NUM_THREADS": threads_per_process(env.world_size),
        # as under torchrun: torch then joins the store, and rank 0 opens none
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    if sys.platform == "linux":  # all ranks are here, whatever this machine's name resolves to
        variables.setdefault("GLOO_SOCKET_IFNAME", "lo")
    program = f"import sys; sys.path[:] = {sys.path!r}; folder = {str(folder)!r}; {PROGRAM}"
    command = [sys.executable, "-P", "-c", program, f"rank-{env.rank}"]
    # own process group: Ctrl-C reaches the launcher alone, which forwards it once
    return subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, process_group=0)


class Supervisor:
    """Waits for the processes of all ranks and finds the error that ended the run.

    Args:
        ranks: the processes, in rank order.
        out: the run folder, whose lock this process holds.
        last_phase: gives the phase in which a rank was seen last.
    """

    def __init__(
        self,
        ranks: list[subprocess.Popen[bytes]],
        out: Path,
        last_phase: Callable[[int], str] = lambda rank: "",
    ) -> None:
        self.ranks, self.out, self.last_phase = ranks, out, last_phase
        self.requests: list[signal.Signals] = []
        self.ended_by_us: set[int] = set()

    @contextmanager
    def forward_signals(self) -> Iterator[None]:
        """Forward `SIGNALS` to all ranks; kill what still runs at the end of the block."""
        handled = threading.current_thread() is threading.main_thread()
        before = [signal.signal(number, self._forward) for number in SIGNALS] if handled else []
        try:
            yield
        finally:
            self._signal(signal.SIGKILL)
            for number, handler in zip(SIGNALS, before, strict=False):
                signal.signal(number, handler)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.requests.append(signal.Signals(number))
        for rank in self.ranks:
            rank.send_signal(number)

    def wait(self) -> None:
        """Wait until all ranks have ended.

        After a failure the others get `GRACE_SECONDS`, then SIGTERM, then SIGKILL. If another
        process takes over the run folder, all are killed at once.
        """
        failed_at = 0.0
        while None in (codes := [rank.poll() for rank in self.ranks]):
            if lock.is_lost(self.out):
                self._signal(signal.SIGKILL)
            if any(codes) or len(self.requests) > 1:
                failed_at = failed_at or time.monotonic()
                waited = time.monotonic() - failed_at
                if waited > GRACE_SECONDS + KILL_SECONDS:
                    self._signal(signal.SIGKILL)
                elif waited > GRACE_SECONDS:
                    self._signal(signal.SIGTERM)
            time.sleep(POLL_SECONDS)

    def _signal(self, number: signal.Signals) -> None:
        for i, rank in enumerate(self.ranks):
            if rank.poll() is None:
                self.ended_by_us.add(i)
                rank.send_signal(number)

    def error(self, reports: list[ErrorReport], logs: Path) -> RlhfError | None:
        """Return the first error of the run; errors it caused in other ranks are ignored."""
        reports = sorted(reports, key=lambda report: (report.secondary, report.time))
        if reports and not reports[0].secondary:
            return reports[0].error(named=sum(not report.secondary for report in reports) == 1)
        reported = {report.rank for report in reports}
        for i, rank in enumerate(self.ranks):
            if rank.returncode and i not in reported | self.ended_by_us:
                return self._error_without_report(i, rank.returncode, logs)
        if self.ended_by_us and self.requests:
            return self._interrupted()
        return reports[0].error() if reports else None

    def _error_without_report(self, number: int, code: int, logs: Path) -> RlhfError:
        if -code in self.requests:
            return self._interrupted()
        if code > 0:
            log = f"; see {logs}/rank-{number}.log" if number else ""
            return RlhfError(f"rank {number} exited with code {code} without an error report{log}")
        name = signal.Signals(-code).name
        memory = " (the system does so where memory runs out)" if name == "SIGKILL" else ""
        phase = self.last_phase(number)
        when = f", last seen in phase {phase}" if phase else ""
        return RlhfError(f"rank {number} was killed by {name}{memory}{when}; {AGAIN}")

    def _interrupted(self) -> Interrupted:
        return Interrupted(f"{self.requests[0].name}; the last checkpoint, if any, is kept")
