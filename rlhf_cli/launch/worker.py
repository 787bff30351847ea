"""One rank of a run: its environment, its task, its error report and its log."""

import json
import os
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from rlhf_cli import errors
from rlhf_cli.config.check import check
from rlhf_cli.config.command import Command
from rlhf_cli.config.rank_env import read_rank_env
from rlhf_cli.cores import cores
from rlhf_cli.errors import (
    CheckpointError,
    ConfigError,
    Interrupted,
    OutOfMemory,
    RankFailed,
    RlhfError,
    first_line,
    translate,
)
from rlhf_cli.memory.out_of_memory import explained
from rlhf_cli.registry import COMMANDS
from rlhf_cli.runs import hub, log, manifest, run_files


def threads_per_process(processes: int) -> str:
    """OMP_NUM_THREADS of each process: the user's value, else an equal share of the cores."""
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // processes))


@dataclass(frozen=True)
class Task:
    """What every rank runs; ranks neither compose a configuration nor create a folder.

    Attributes:
        stage: name of the command.
        tree: the resolved configuration, with `resume`, which `config.yaml` in the folder lacks.
        out: the run folder, claimed by the first process.
        references: key -> environment reference of each secret.
    """

    stage: str
    tree: dict[str, Any]
    out: str
    references: dict[str, str] = field(default_factory=log.secret_references)

    @property
    def command(self) -> Command:
        """Registry entry of the stage."""
        return COMMANDS[self.stage]

    def prepare(self) -> None:
        """Do once what ranks must not repeat: train the tokenizer, tokenize the rows."""
        self._call("prepare")

    def run(self) -> dict[str, Any]:
        """Run this rank's part of the training; rank 0 returns the summary for the manifest."""
        summary: dict[str, Any] = self._call(self.command.runner.partition(":")[2])
        return summary

    def _call(self, function: str) -> Any:
        """Call a function of the stage's runner module, which imports torch."""
        hub.set_commits(manifest.commits(Path(self.out)))
        checked = check(self.command, self.tree, {})
        if checked.problems:  # a path may be missing on another machine
            raise ConfigError("\n".join(problem.text for problem in checked.problems))
        log.set_secret_references(self.references)
        module = import_module(self.command.runner.partition(":")[0])
        own = read_rank_env()
        with explained(self.stage, checked.config, own.world_size if own else 1):
            return getattr(module, function)(checked.config, Path(self.out))

    def to_json(self) -> str:
        """Serialize the task for another process."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class ErrorReport:
    """The error that ended a rank.

    Attributes:
        rank: of the process.
        kind: class name of an `RlhfError`; empty for an unexpected error.
        message: of the error.
        traceback: of the error.
        time: seconds since the epoch; the earliest error of a run is the one shown.
    """

    rank: int
    kind: str
    message: str
    traceback: str
    time: float

    @property
    def secondary(self) -> bool:
        """Whether the rank failed only because another rank had ended."""
        return self.kind == RankFailed.__name__

    @property
    def exit_code(self) -> int:
        """Exit code of the rank's process under another launcher."""
        code: int = getattr(errors, self.kind).exit_code if self.kind else RlhfError.exit_code
        return code

    def error(self, *, named: bool = False) -> RlhfError:
        """Rebuild the error that the rank raised; prints the traceback of an unexpected one.

        Args:
            named: begin with the rank, if the error is one of its machine: memory or a disk.
        """
        if self.kind:
            kind: type[RlhfError] = getattr(errors, self.kind)
            of_machine = named and issubclass(kind, CheckpointError | OutOfMemory)
            return kind(f"rank {self.rank}: {self.message}" if of_machine else self.message)
        print(self.traceback, end="", file=sys.stderr, flush=True)
        return RlhfError(f"rank {self.rank}: {self.message}; see its traceback above")


def build_report(error: BaseException, rank: int) -> ErrorReport:
    """Describe an error as the command line does in a single process."""
    ours: BaseException | None = error
    if isinstance(error, KeyboardInterrupt):
        ours = Interrupted("interrupted; the last checkpoint, if any, is kept")
    elif isinstance(error, Exception) and not isinstance(error, RlhfError):
        ours = translate(error)
    trace = "".join(traceback.format_exception(error))
    if isinstance(ours, RlhfError):
        return ErrorReport(rank, type(ours).__name__, str(ours), trace, time.time())
    message = f"{type(error).__name__}: {first_line(error)}"
    return ErrorReport(rank, "", message, trace, time.time())


def report_path(folder: Path, rank: int) -> Path:
    """Path of a rank's error report in the shared folder."""
    return folder / f"rank-{rank}.json"


def write_report(folder: Path, report: ErrorReport) -> None:
    """Write an error report for the launcher."""
    report_path(folder, report.rank).write_text(json.dumps(asdict(report)), encoding="utf-8")


def read_report(folder: Path, rank: int) -> ErrorReport | None:
    """Read a rank's error report; None if there is no complete one."""
    try:
        return ErrorReport(**json.loads(report_path(folder, rank).read_text(encoding="utf-8")))
    except (OSError, ValueError):  # ValueError: the rank was killed while it wrote
        return None


def redirect_output(out: Path, rank: int) -> TextIO:
    """Redirect stdout and stderr of every rank but 0 to `ranks/rank-<rank>.log`, C code included.

    Returns:
        The former stderr, for an error of the rank.
    """
    before = os.fdopen(os.dup(2), "w", encoding="utf-8")
    if rank:
        path = out / run_files.RANK_LOGS / f"rank-{rank}.log"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)
    return before
