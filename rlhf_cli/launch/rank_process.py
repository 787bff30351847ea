"""A process that the launcher of this machine started: it runs one rank and reports to it."""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

from rlhf_cli.config.rank_env import RankEnv, read_rank_env
from rlhf_cli.console import logger
from rlhf_cli.errors import RankFailed
from rlhf_cli.launch.group import joined, run_task
from rlhf_cli.launch.worker import Task, build_report, redirect_output, write_report
from rlhf_cli.runs.log import logged, redacted

TASK, SUMMARY = "task.json", "summary.json"
"""Files in the temporary folder that the launcher shares with its ranks."""


def run_rank(folder: str) -> NoReturn:
    """Run this rank and end the process with its exit code.

    The process ends at once: torch threads that are alive while Python shuts down can abort it.
    """
    code = main(Path(folder))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(folder: Path) -> int:
    """Run this rank; write its summary or its error report into the shared folder."""
    own = read_rank_env()
    if own is None:
        raise RuntimeError("a rank is started by `rlhf`, which sets RANK and WORLD_SIZE")
    end_with_parent()
    task = Task(**json.loads((folder / TASK).read_text(encoding="utf-8")))
    redirect_output(Path(task.out), own.rank)
    with redacted() if own.rank else logged(Path(task.out), with_error=False):
        try:
            summary = _run(folder, task, own)
        except BaseException as error:
            report = build_report(error, own.rank)
            write_report(folder, report)
            if own.rank:
                print(report.traceback, end="", file=sys.stderr)  # into the rank's log
            return 1
    if own.rank == 0:
        (folder / SUMMARY).write_text(json.dumps(summary), encoding="utf-8")
    return 0


def _run(folder: Path, task: Task, own: RankEnv) -> dict[str, Any]:
    def end(error: RankFailed) -> None:
        write_report(folder, build_report(error, own.rank))
        os._exit(1)

    with joined(own, logger.warning, end) as store:
        return run_task(task, own, store)


def end_with_parent() -> None:
    """End this process when the launcher is gone, however that ended.

    The launcher holds the other end of our stdin and writes nothing.
    """

    def wait() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
