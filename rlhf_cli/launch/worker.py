"""What a launcher tells a process about its place, in torchrun's variables.

What every rank of a run is to do; ranks compose no configuration and make no folder.

How a rank's end is told to the process that started it, and to the user.

One rank, as a process of its own: `start` is what the parent calls there.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, TextIO

from rlhf_cli import errors
from rlhf_cli.command_line import failures
from rlhf_cli.config.check import check
from rlhf_cli.cores import cores
from rlhf_cli.errors import ConfigError, Interrupted, RankFailed, RlhfError, first_line
from rlhf_cli.runs import hub, log, manifest, run_files
from rlhf_cli.runs.log import logged, redacted
from rlhf_cli.stages.registry import COMMANDS, Command


@dataclass(frozen=True)
class Place:
    """One process among several."""

    rank: int
    local_rank: int
    """Its number on its own machine: which GPU it takes."""

    size: int

    def variables(self) -> dict[str, str]:
        """The same in the words that libraries look for."""
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_WORLD_SIZE": str(self.size),
        }


def place(variables: Mapping[str, str] = os.environ) -> Place | None:
    """This process's place, or none: nobody launched it as one of several."""
    try:
        rank, size = int(variables["RANK"]), int(variables["WORLD_SIZE"])
        local_rank = int(variables.get("LOCAL_RANK", rank))
    except (KeyError, ValueError):
        return None
    return Place(rank, local_rank, size) if size > 1 else None


def threads(processes: int) -> str:
    """Threads of each process, unless the user said how many: they share the cores."""
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // processes))


@dataclass(frozen=True)
class Task:
    """A stage, its resolved configuration and the folder that the first process claimed.

    The tree holds `resume` too, which the folder's `config.yaml` leaves out.
    """

    stage: str
    tree: dict[str, Any]
    out: str
    references: dict[str, str] = field(default_factory=log.references)

    @property
    def command(self) -> Command:
        """The stage's line in the registry."""
        return COMMANDS[self.stage]

    def prepare(self) -> None:
        """What is done once, before the ranks start: tokenizer and tokens."""
        self._call("prepare")

    def run(self) -> dict[str, Any]:
        """This rank's part of the run; rank 0 gets what the manifest tells of it."""
        summary: dict[str, Any] = self._call(self.command.runner.partition(":")[2])
        return summary

    def _call(self, function: str) -> Any:
        """Call a function of the stage's runner module, which imports torch and the rest."""
        hub.begin(manifest.commits(Path(self.out)))
        checked = check(self.command, self.tree, {})
        if checked.problems:  # on another machine a path may be missing
            raise ConfigError("\n".join(problem.text for problem in checked.problems))
        log.begin(self.references)
        module = import_module(self.command.runner.partition(":")[0])
        return getattr(module, function)(checked.config, Path(self.out))

    def to_json(self) -> str:
        """As text, for another process."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Report:
    """Why a rank ended early."""

    rank: int
    kind: str
    """The class of an error of ours; empty for one that nobody expected."""

    message: str
    traceback: str
    time: float
    """Seconds since the epoch; the first error is the one to be told."""

    @property
    def secondary(self) -> bool:
        """Whether the rank only noticed that another one had ended."""
        return self.kind == RankFailed.__name__

    @property
    def exit_code(self) -> int:
        """What the rank's process ends with, where it is not the parent that speaks."""
        code: int = getattr(errors, self.kind).exit_code if self.kind else RlhfError.exit_code
        return code

    def error(self) -> RlhfError:
        """The error as the rank raised it; the traceback of an unexpected one is printed."""
        if self.kind:
            kind: type[RlhfError] = getattr(errors, self.kind)
            return kind(self.message)
        print(self.traceback, end="", file=sys.stderr, flush=True)
        return RlhfError(f"rank {self.rank}: {self.message}; its traceback stands above")


def report_of(error: BaseException, rank: int, command: Command) -> Report:
    """Put an error into words, as the command line does for one process."""
    ours: BaseException | None = error
    if isinstance(error, KeyboardInterrupt):
        ours = Interrupted("interrupted; the last checkpoint, if any, stands")
    elif isinstance(error, Exception) and not isinstance(error, RlhfError):
        ours = failures.known(error, command)
    trace = "".join(traceback.format_exception(error))
    if isinstance(ours, RlhfError):
        return Report(rank, type(ours).__name__, str(ours), trace, time.time())
    message = f"{type(error).__name__}: {first_line(error)}"
    return Report(rank, "", message, trace, time.time())


def report_path(folder: Path, rank: int) -> Path:
    """Where a rank leaves its report."""
    return folder / f"rank-{rank}.json"


def write_report(folder: Path, report: Report) -> None:
    """Leave it for the process that started the rank."""
    report_path(folder, report.rank).write_text(json.dumps(asdict(report)), encoding="utf-8")


def read_report(folder: Path, rank: int) -> Report | None:
    """A rank's report, or none: it left no word."""
    try:
        return Report(**json.loads(report_path(folder, rank).read_text(encoding="utf-8")))
    except (OSError, ValueError):  # cut off where the rank was killed while writing
        return None


TASK, STORE, SUMMARY = "task.json", "store", "summary.json"
"""Files in the temporary folder that parent and ranks share."""

LOGS = run_files.RANK_LOGS
"""Folder in the run folder: what all ranks but the first said."""


def start(folder: Path) -> NoReturn:
    """Do this rank's part, and end the process with its exit code.

    It ends at once: threads of torch that are still there while Python cleans up can abort it,
    after all is done.
    """
    code = main(folder)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(folder: Path) -> int:
    """Do this rank's part; leave a summary in the folder, or a report of what went wrong."""
    own = place()
    if own is None:
        raise RuntimeError("a rank is started by `rlhf`, which sets RANK and WORLD_SIZE")
    end_with_parent()
    task = Task(**json.loads((folder / TASK).read_text(encoding="utf-8")))
    silence(Path(task.out), own.rank)
    with redacted() if own.rank else logged(Path(task.out), with_error=False):
        try:
            summary = _work(folder, task, own)
        except BaseException as error:
            report = report_of(error, own.rank, task.command)
            write_report(folder, report)
            if own.rank:
                print(report.traceback, end="", file=sys.stderr)  # into the rank's log
            return 1
    if own.rank == 0:
        (folder / SUMMARY).write_text(json.dumps(summary), encoding="utf-8")
    return 0


def _work(folder: Path, task: Task, own: Place) -> dict[str, Any]:
    from rlhf_cli.distributed import join, leave, meet

    # a file, not a port: nobody else can take it between our choice and its use
    store = meet(f"file://{folder / STORE}", own.rank, own.size)
    join(store, own.rank, own.size, own.local_rank)
    summary = task.run()
    leave()
    return summary


def end_with_parent() -> None:
    """End this process when the one that started it is gone, however that ended.

    The parent holds the other end of our stdin and writes nothing.
    """

    def wait() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def silence(out: Path, rank: int) -> TextIO:
    """Send what a rank but the first says into `ranks/rank-<rank>.log`, C libraries included.

    Returns:
        Where stderr went before, for an error of the rank.
    """
    before = os.fdopen(os.dup(2), "w", encoding="utf-8")
    if rank:
        log = os.open(out / LOGS / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
    return before
