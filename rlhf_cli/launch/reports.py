"""How a rank's end is told to the process that started it, and to the user."""

import json
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from rlhf_cli import errors
from rlhf_cli.config.command import Command
from rlhf_cli.errors import Interrupted, RankFailed, RlhfError, first_line, translate


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
        ours = translate(error, command.less_memory)
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
