"""Under `torchrun` or `accelerate launch`: rank 0 is the command line, the others wait for it."""

import json
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import Any

from rlhf_cli.errors import ConfigError
from rlhf_cli.launch.environment import Place, place
from rlhf_cli.launch.reports import report_of
from rlhf_cli.launch.task import Task
from rlhf_cli.launch.worker import LOGS, silence
from rlhf_cli.registry import COMMANDS
from rlhf_cli.runs.log import redacted
from rlhf_cli.runs.secrets import redact

WAIT = timedelta(days=2)
"""How long ranks wait for rank 0, which may have to tokenize first."""

MESSAGE = "rlhf/task"

_told = Event()
"""Set once the others know what they are to do."""


def launched(argv: list[str]) -> Place | None:
    """This process's place, where another launcher started several of a training command."""
    trains = argv[:1] and argv[0] in COMMANDS and COMMANDS[argv[0]].trains
    return place() if trains else None


def follow(own: Place) -> int:
    """Wait for what rank 0 found, and do this rank's part of it.

    Returns:
        Exit code; rank 0's, where it started no run.
    """
    from rlhf_cli.distributed import join, leave, meet

    store = meet("env://", own.rank, own.size, WAIT)
    store.wait([MESSAGE], WAIT)
    message = json.loads(store.get(MESSAGE))
    join(store, own.rank, own.size, own.local_rank)
    if "exit" in message:
        return int(message["exit"])
    task = Task(**message)
    stderr = silence(Path(task.out), own.rank)
    try:
        with redacted():
            task.run()
    except BaseException as error:
        report = report_of(error, own.rank, task.command)
        text = f"error: {report.message}\n" if report.kind else report.traceback
        print(f"rank {own.rank}: {redact(text)}", end="", file=stderr, flush=True)
        return report.exit_code
    leave()
    return 0


def lead(task: Task, own: Place) -> dict[str, Any]:
    """Prepare a run, tell the others, and do rank 0's part of it."""
    from rlhf_cli.distributed import leave

    if _told.is_set():
        raise ConfigError("several runs: a launcher starts processes for one; start each by itself")
    processes = task.tree["launch"]["processes"]
    if processes not in (0, 1, own.size):
        raise ConfigError(
            f"launch.processes: got {processes}, but the launcher started {own.size} processes; "
            "leave the key out"
        )
    task.prepare()
    (Path(task.out) / LOGS).mkdir(exist_ok=True)
    _tell(task.to_json(), own)
    summary = task.run()
    leave()
    return summary


def dismiss(own: Place, code: int) -> None:
    """Let the others end with rank 0, where it found nothing to run or could not start it."""
    from rlhf_cli.distributed import leave

    if not _told.is_set():
        _tell(json.dumps({"exit": code}), own)
        leave()


def _tell(text: str, own: Place) -> None:
    from rlhf_cli.distributed import join, meet

    store = meet("env://", own.rank, own.size)
    store.set(MESSAGE, text)
    _told.set()
    join(store, own.rank, own.size, own.local_rank)
