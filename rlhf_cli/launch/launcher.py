"""Run a stage in several processes: those of another launcher, or our own.

Start the ranks of a run on this machine, watch them, and tell how they ended.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rlhf_cli.cores import cores
from rlhf_cli.errors import ConfigError, Interrupted, RlhfError
from rlhf_cli.launch import torchrun
from rlhf_cli.launch.worker import (
    LOGS,
    SUMMARY,
    TASK,
    Place,
    Report,
    Task,
    place,
    read_report,
    threads,
)
from rlhf_cli.runs import lock


def alone(processes: int) -> bool:
    """Whether the run is this process and no other."""
    return place() is None and (processes == 1 or (processes == 0 and _gpus() < 2))


def launch(stage: str, tree: dict[str, Any], out: Path) -> dict[str, Any]:
    """Prepare a run here, then train in all processes.

    Args:
        stage: its name in the registry; its runner's module has a `prepare(cfg, out)` too, which
            leaves all that ranks must not make each for itself.
        tree: the resolved configuration.
        out: the run folder, claimed.

    Returns:
        What the manifest tells of the run.
    """
    task = Task(stage, tree, str(out))
    own = place()
    if own is not None:
        return torchrun.lead(task, own)
    size = _size(tree["launch"]["processes"])
    task.prepare()
    print(f"processes: {size}, {threads(size)} threads each", file=sys.stderr, flush=True)
    return run_ranks(task, size)


def _size(processes: int) -> int:
    gpus = _gpus()
    if gpus and processes > gpus:
        raise ConfigError(
            f"launch.processes: got {processes}, but there are {gpus} GPUs, one for each process. "
            f"Try launch.processes={gpus}"
        )
    most = max(2, cores())
    if not gpus and processes > most:  # each holds the whole model
        raise ConfigError(
            f"launch.processes: got {processes}, but there are {most} cores and no GPU; need at "
            f"most one process a core. Try launch.processes={most}"
        )
    return processes or gpus


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


POLL_SECONDS = 0.1
GRACE_SECONDS = 10.0
"""For the other ranks to end by themselves after one has failed; then they are ended."""

KILL_SECONDS = 5.0
"""After that, for a rank that does not end when told to."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_ranks(task: Task, size: int) -> dict[str, Any]:
    """Run a prepared task in several processes.

    Returns:
        What rank 0 tells of the run.

    Raises:
        RlhfError: what the first failing rank raised, or how it ended.
        CheckpointError: another process took the run folder over; the ranks were ended.
    """
    logs = Path(task.out) / LOGS
    logs.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rlhf-") as name, ExitStack() as open_ranks:
        folder = Path(name)
        (folder / TASK).write_text(task.to_json(), encoding="utf-8")
        places = [Place(i, i, size) for i in range(size)]
        ranks = [open_ranks.enter_context(_start(folder, place)) for place in places]
        watch = Watch(ranks, Path(task.out))
        with watch.forwarding():
            watch.until_all_ended()
        lock.require_owned(watch.out)
        reports = [report for i in range(size) if (report := read_report(folder, i))]
        error = watch.verdict(reports, logs)
        if error is not None:
            raise error
        summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        return summary


def _start(folder: Path, place: Place) -> subprocess.Popen[bytes]:
    variables = {**os.environ, **place.variables(), "OMP_NUM_THREADS": threads(place.size)}
    if sys.platform == "linux":  # all are on this machine, whatever its name resolves to
        variables.setdefault("GLOO_SOCKET_IFNAME", "lo")
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; from pathlib import Path; "
        f"from rlhf_cli.launch.worker import start; start(Path({str(folder)!r}))"
    )
    command = [sys.executable, "-P", "-c", program, f"rank-{place.rank}"]
    # A group of its own: Ctrl-C reaches the parent alone, which passes it on once.
    return subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, process_group=0)


class Watch:
    """The ranks while they run.

    Args:
        ranks: their processes.
        out: the run folder, which this process owns for them.
    """

    def __init__(self, ranks: list[subprocess.Popen[bytes]], out: Path) -> None:
        self.ranks, self.out = ranks, out
        self.requests: list[signal.Signals] = []
        self.ended_by_us: set[int] = set()

    @contextmanager
    def forwarding(self) -> Iterator[None]:
        """Pass SIGINT and SIGTERM on to all ranks; end them with this block."""
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

    def until_all_ended(self) -> None:
        """Wait; once a rank has failed, the others have a moment to end before they are made to.

        Where another process took the run folder over, they are ended at once.
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

    def verdict(self, reports: list[Report], logs: Path) -> RlhfError | None:
        """The error that ended the run: the first, not those of the ranks that it took along."""
        reports = sorted(reports, key=lambda report: (report.secondary, report.time))
        if reports and not reports[0].secondary:
            return reports[0].error()
        told = {report.rank for report in reports}
        for i, rank in enumerate(self.ranks):
            if rank.returncode and i not in told | self.ended_by_us:
                return self._silent_end(i, rank.returncode, logs)
        if self.ended_by_us and self.requests:
            return self._stopped()
        return reports[0].error() if reports else None

    def _silent_end(self, number: int, code: int, logs: Path) -> RlhfError:
        """What is to be said of a rank that could not say it."""
        if -code in self.requests:
            return self._stopped()
        if code > 0:
            log = f"; see {logs}/rank-{number}.log" if number else ""
            return RlhfError(f"rank {number} ended with exit code {code} and left no word{log}")
        name = signal.Signals(-code).name
        memory = " (the system does so where memory runs out)" if name == "SIGKILL" else ""
        return RlhfError(
            f"rank {number} was killed by {name}{memory}; the last checkpoint stands. "
            "Give the same command again to continue"
        )

    def _stopped(self) -> Interrupted:
        return Interrupted(f"{self.requests[0].name}; the last checkpoint, if any, stands")
