"""Several runs beside each other, and the jobs of a sweep."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from rlhf_cli.errors import DataError
from rlhf_cli.report.facts import STATUS_WORDS, last_step
from rlhf_cli.report.glossary import describe
from rlhf_cli.report.plots import Coordinate, draw_parallel
from rlhf_cli.report.text import NONE, clean, show_number, show_seconds
from rlhf_cli.runs import run_files
from rlhf_cli.runs.record import RunRecord, read_record

SWEEP_TABLE = "sweep.csv"

MOST_RUNS = 24
"""Runs whose curves are read and drawn."""

MAIN_METRICS = ("loss", "score", "kl", "accuracy", "rewards/accuracies", "rewards/margins", "auc")
"""Held-out metrics that have a column where runs are compared."""


@dataclass(frozen=True)
class Sweep:
    """The jobs of a sweep, the best first.

    Attributes:
        folder: of the sweep.
        keys: that were swept.
        metrics: columns of results.
        rows: of the jobs: rank, job, values of the keys, status and results, as text.
        parallel: drawing of keys and results; empty for fewer than two jobs with a result.
    """

    folder: Path
    keys: Sequence[str]
    metrics: Sequence[str]
    rows: Sequence[Sequence[str]]
    parallel: Markup = field(default_factory=Markup)


def expand(folders: Sequence[Path]) -> list[Path]:
    """Replace each folder of a sweep, or of runs, by the runs in it.

    Raises:
        DataError: a folder is not there.
    """
    found: list[Path] = []
    for folder in folders:
        inside = _runs_in(folder)
        found += inside if inside else [folder]
    return list(dict.fromkeys(found))


def _runs_in(folder: Path) -> list[Path]:
    """Runs directly below a folder that is none itself; jobs of a sweep by their numbers."""
    if not folder.is_dir() or (folder / run_files.MANIFEST).is_file():
        return []
    marks = (run_files.MANIFEST, run_files.METRICS)
    inside = [each for each in folder.iterdir() if any((each / mark).is_file() for mark in marks)]
    return sorted(inside, key=lambda each: (not each.name.isdigit(), each.name.zfill(9)))


def read_sweep(folder: Path) -> list[dict[str, str]]:
    """Rows of a sweep's table, the best first; empty where there is no table.

    Raises:
        DataError: the table cannot be read.
    """
    file = folder / SWEEP_TABLE
    if not file.is_file():
        return []
    try:
        with file.open(encoding="utf-8", errors="replace", newline="") as stream:
            rows = [dict(row) for row in csv.DictReader(stream)]
    except (OSError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read ({error})") from None
    return sorted(rows, key=lambda row: _number(row.get("rank")) or math.inf)


def _number(value: object) -> float | None:
    try:
        found = float(str(value))
    except ValueError:
        return None
    return found if math.isfinite(found) else None


_RESULTS = ("status", "exit_code", "value", "loss", "seconds", "folder", "job", "rank")


def view_sweep(folder: Path) -> Sweep | None:
    """The table of a sweep and its parallel coordinates; None where there is no table."""
    rows = read_sweep(folder)
    if not rows:
        return None
    columns = [name for name in rows[0] if name is not None]
    keys = [name for name in columns if name not in _RESULTS and not name.startswith("eval/")]
    objective = _objective(rows)
    main = [f"eval/{name}" for name in MAIN_METRICS]
    metrics = ["value", *(name for name in main if name in columns and name != objective)]
    metrics = [name for name in metrics if any(row.get(name) for row in rows)]
    labels = {"value": objective}
    body = [
        [
            clean(row.get("rank", "") or NONE, 12),
            clean(row.get("job", ""), 12),
            *(clean(row.get(key, ""), 60) for key in keys),
            clean(STATUS_WORDS.get(row.get("status", ""), row.get("status", "")), 30),
            *(_result(row.get(name), labels.get(name, name)) for name in metrics),
            _seconds(row.get("seconds")),
        ]
        for row in rows
    ]
    shown = [_label(labels.get(name, name)) for name in metrics]
    parallel = _parallel(rows, keys, metrics[:3], labels)
    return Sweep(folder, [clean(key, 60) for key in keys], shown, body, parallel)


def _label(name: str) -> str:
    return clean(describe(name).label, 40)


def job_names(folder: Path, records: Sequence[RunRecord]) -> list[str]:
    """Names of a sweep's jobs: their numbers, and the last part of each key with its value."""
    rows = {row.get("job", ""): row for row in read_sweep(folder)}
    found = []
    for record in records:
        row = rows.get(record.folder.name, {})
        keys = [name for name in row if name not in _RESULTS and not name.startswith("eval/")]
        words = ", ".join(f"{key.rpartition('.')[2]}={row[key]}" for key in keys)
        found.append(clean(f"{record.folder.name}: {words}" if words else record.folder.name, 60))
    return found


def _objective(rows: Sequence[Mapping[str, str]]) -> str:
    """The held-out metric that ranks the jobs: the one with the values of `value`."""
    ranked = [row for row in rows if row.get("value")]
    names = [name for name in rows[0] if name is not None and name.startswith("eval/")]
    same = (name for name in names if all(row.get(name) == row["value"] for row in ranked))
    return next(same, "value") if ranked else "value"


def _result(value: object, name: str) -> str:
    return show_number(_number(value), describe(name).unit)


def _seconds(value: object) -> str:
    found = _number(value)
    return NONE if found is None else show_seconds(found)


def _parallel(
    rows: Sequence[Mapping[str, str]],
    keys: Sequence[str],
    metrics: Sequence[str],
    labels: Mapping[str, str],
) -> Markup:
    done = [row for row in rows if any(_number(row.get(name)) is not None for name in metrics)]
    if len(done) < 2 or not keys:
        return Markup("")
    axes = [Coordinate(clean(key, 24), _values([row.get(key) for row in done])) for key in keys]
    axes += [
        Coordinate(_label(labels.get(name, name)), [_number(row.get(name)) for row in done])
        for name in metrics
    ]
    names = [f"job {clean(row.get('job', ''), 12)}" for row in done]
    return draw_parallel(axes, names, range(len(done)))


def _values(texts: Sequence[str | None]) -> list[float | str | None]:
    """Numbers if all are, else texts."""
    numbers = [_number(text) for text in texts]
    if all(number is not None for number in numbers):
        return list(numbers)
    return [clean(text, 30) if text else None for text in texts]


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Read the runs; those that hold nothing yet are left out where others hold something.

    Raises:
        DataError: none of the folders holds a run, or one that was named does not exist.
    """
    records, errors = [], []
    for folder in folders[:MOST_RUNS]:
        try:
            records.append(read_record(folder))
        except DataError as error:
            errors.append(error)
    if errors and (not records or len(folders) == 1):
        raise errors[0]
    return records


def run_names(records: Sequence[RunRecord]) -> list[str]:
    """Shortest different names of runs: of their folders, with as many parents as it takes."""
    paths = [record.folder.resolve() for record in records]
    for depth in range(1, 6):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len({*names}) == len(names):
            return [clean(name, 60) for name in names]
    return [clean(f"{path.name} ({k})", 60) for k, path in enumerate(paths, start=1)]


@dataclass(frozen=True)
class RunRow:
    """A run in the table of runs.

    Attributes:
        name: of the run.
        style: class of its color.
        facts: stage, status, steps, time.
        results: held-out metrics after the last step.
    """

    name: str
    style: str
    facts: Sequence[str]
    results: Sequence[str]


def run_rows(
    records: Sequence[RunRecord], names: Sequence[str], styles: Sequence[str]
) -> tuple[list[str], list[RunRow]]:
    """Columns of results, and a row for each run."""
    ends = [_last_results(record) for record in records]
    columns = [name for name in MAIN_METRICS if any(name in end for end in ends)]
    rows = [
        RunRow(
            name,
            style,
            [
                record.stage or record.tool,
                STATUS_WORDS[record.status],
                _steps(record),
                _seconds(record.manifest.get("seconds")),
            ],
            [show_number(end.get(column), describe(column).unit) for column in columns],
        )
        for record, name, style, end in zip(records, names, styles, ends, strict=True)
    ]
    return [clean(describe(column).label, 40) for column in columns], rows


def _last_results(record: RunRecord) -> dict[str, float]:
    after = record.manifest.get("after")
    if isinstance(after, Mapping) and after:
        return {str(k): v for k, v in after.items() if isinstance(v, int | float)}
    evaluations = record.evaluations
    return evaluations[-1] if evaluations else {}


def _steps(record: RunRecord) -> str:
    last = last_step(record)
    return NONE if last is None else f"{last:,}"
