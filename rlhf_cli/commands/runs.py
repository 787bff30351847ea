"""`rlhf runs`: list run folders with stage, status, steps, main metric and size."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_cli.console import format_table, print_result, print_results_as_json
from rlhf_cli.errors import ConfigError, DataError
from rlhf_cli.runs import foreign, run_files
from rlhf_cli.runs.record import RunRecord, read_record
from rlhf_cli.runs.summary import RunSummary, summarize

DEFAULT = "runs"

DEPTH = 3
"""Levels of folders below a named one that are searched; a sweep has its runs two below."""


@dataclass(frozen=True)
class Listed:
    """A run in the list.

    Attributes:
        summary: of the run.
        bytes: size of all files in its folder.
        ended: time of the last change of its metrics or manifest, seconds since the epoch.
    """

    summary: RunSummary
    bytes: int
    ended: float

    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        run = self.summary
        main = run.changes[0] if run.changes else None
        metric = f"{main.metric} {main}" if main else ""
        size = f"{self.bytes / 1e6:,.0f} MB"
        return run.output_dir, run.stage or "?", run.status, str(run.steps), metric, size

    def to_dict(self) -> dict[str, Any]:
        """JSON values, for `--json`."""
        return {**self.summary.to_dict(), "bytes": self.bytes, "ended": self.ended}


def run(args: list[str]) -> None:
    """Run `rlhf runs [FOLDER]... [--json]`.

    Raises:
        ConfigError: an unknown switch.
        DataError: a named folder does not exist.
    """
    switches = [arg for arg in args if arg.startswith("-")]
    unknown = [arg for arg in switches if arg != "--json"]
    if unknown:
        raise ConfigError(f"{unknown[0]}: no such switch of rlhf runs; need --json or folders")
    folders = [Path(arg).expanduser() for arg in args if not arg.startswith("-")]
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing:
        raise DataError(f"{missing[0]}: no such folder; need a folder of runs. Try rlhf runs")
    found = sorted(
        (_read(path) for folder in folders or [Path(DEFAULT)] for path in find_runs(folder)),
        key=lambda one: one.ended,
    )
    header = ("folder", "stage", "status", "steps", "main metric, before → after", "size")
    text = format_table([header, *(one.cells() for one in found)]) if found else "no runs"
    print_results_as_json("--json" in switches)
    print_result(text, [one.to_dict() for one in found])


def find_runs(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Find the run folders at and below a folder; a run is not searched for further runs."""
    if any((folder / name).is_file() for name in (run_files.MANIFEST, run_files.METRICS)):
        yield folder
        return
    if foreign.find_state(folder) is not None:
        yield folder
        return
    if depth and folder.is_dir():
        for entry in sorted(folder.iterdir()):
            if entry.is_dir() and not entry.is_symlink() and os.access(entry, os.R_OK | os.X_OK):
                yield from find_runs(entry, depth - 1)


def _read(path: Path) -> Listed:
    try:
        record = read_record(path)
    except DataError:  # one damaged folder does not hide the others
        record = RunRecord(folder=path)
    files = [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
    times = [file.stat().st_mtime for file in files] or [path.stat().st_mtime]
    return Listed(summarize(record), sum(file.stat().st_size for file in files), max(times))
