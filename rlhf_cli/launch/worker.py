"""One rank, as a process of its own: `start` is what the parent calls there."""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn, TextIO

from rlhf_cli.launch.environment import Place, place
from rlhf_cli.launch.reports import report_of, write_report
from rlhf_cli.launch.task import Task
from rlhf_cli.runs import run_files
from rlhf_cli.runs.log import logged, redacted

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
