"""Write reports: of a run at its end, and of the runs that `rlhf report` names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf_cli.console import logger
from rlhf_cli.errors import DataError, first_line
from rlhf_cli.report.compare import SWEEP_TABLE, expand, read_runs, view_sweep
from rlhf_cli.report.page import compare_page, run_page
from rlhf_cli.runs import lock
from rlhf_cli.runs.run_files import METRICS, REPORT, write_text_atomic


def write_at_end(folder: Path) -> None:
    """Write the report of a run or sweep at its end; an error is one line, and changes nothing.

    A run that ended before its first evaluation or step has nothing to report.
    """
    try:
        lock.require_owned(folder)
        if (folder / METRICS).is_file() or (folder / SWEEP_TABLE).is_file():
            write_report([folder], folder / REPORT)
    except Exception as error:  # whatever is wrong with the page
        logger.info(f"{REPORT}: not written ({first_line(error)})")


def write_report(folders: Sequence[Path], target: Path) -> int:
    """Write the report of one or more runs.

    Args:
        folders: of runs, of a sweep, or of a folder with runs in it.
        target: the file.

    Returns:
        Number of runs in the report.

    Raises:
        DataError: a folder holds no run.
        CheckpointError: the file cannot be written.
    """
    runs = expand(folders)
    if not runs:
        raise DataError(f"{folders[0]}: holds no run; need a run's folder")
    records = read_runs(runs)
    one = len(records) == 1 and list(runs) == list(folders)
    if one:
        page = run_page(records[0])
    else:
        sweep = view_sweep(folders[0]) if len(folders) == 1 else None
        page = compare_page(records, sweep)
    write_text_atomic(target, page)
    return len(records)
