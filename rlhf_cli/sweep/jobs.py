"""Jobs of a sweep: each runs in a process of its own; their results make the table."""

import csv
import io
import json
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rlhf_cli.config.args import Override
from rlhf_cli.console import format_table, logger
from rlhf_cli.errors import CheckpointError, Interrupted
from rlhf_cli.runs import manifest
from rlhf_cli.runs.run_files import (
    METRICS,
    read_json_lines,
    write_json_atomic,
    write_text_atomic,
)
from rlhf_cli.sweep.config import Objective, training_metric

TABLE, _NOTES = "sweep.csv", ".jobs"
_PREVIEW = "log.preview"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

RANK, VALUE = "rank", "value"
"""Columns of the table: rank, 1 for the best job, and objective; empty where a job has none."""

_SECONDARY = ("eval/kl", "eval/loss")
"""Metrics shown beside the objective if the jobs have them."""


def run_job(
    args: list[str], settings: list[Override], sweep: Path, number: int, objective: Objective
) -> float:
    """Run one job and return the value that a sweeper minimizes; infinity without a result.

    Each job is a new process, so that neither memory nor random state carries over. The value is
    never NaN: Optuna refuses it, and its Hydra plugin then ends the sweep.

    Args:
        args: command-line arguments that all jobs share, the command first.
        settings: overrides of this job.
        sweep: folder of the sweep; the job's folder in it is named by its number.
        number: of the job, from 0.
        objective: metric by which jobs are compared.

    Raises:
        KeyboardInterrupt: a signal ended the job.
    """
    out, note = sweep / str(number), sweep / _NOTES / f"{number}.json"
    noted = note.is_file() and manifest.status(out) == "complete"
    own = [f"{setting.key}={setting.text}" for setting in settings]
    about = {"set": {setting.key: setting.text for setting in settings}}
    logger.info(f"job {number}: {' '.join(own)}".rstrip(": "))
    if not noted:  # first: a launcher may kill this process while the job writes its checkpoint
        _write_note(note, {**about, "exit_code": "", "seconds": ""})
    start = time.monotonic()
    quiet = _without_preview(args, settings) if number else []
    code = _run_child([sys.executable, "-m", "rlhf_cli", *args, *quiet, *own, f"output_dir={out}"])
    if not noted:
        seconds = round(time.monotonic() - start, 1)
        _write_note(note, {**about, "exit_code": code, "seconds": seconds})
    write_table(sweep, objective)
    if code == Interrupted.exit_code:
        raise KeyboardInterrupt
    cost = objective.cost(final_metric(out, objective.metric)) if code == 0 else math.nan
    return math.inf if math.isnan(cost) else cost


def _without_preview(args: list[str], settings: list[Override]) -> list[str]:
    """Argument that turns off the preview of the first example, which job 0 has shown."""
    own = [setting.key for setting in settings]
    other_rows = any(key.startswith(("data", "model")) for key in own)
    given = _PREVIEW in own or any(arg.startswith(f"{_PREVIEW}=") for arg in args)
    return [] if other_rows or given else [f"{_PREVIEW}=false"]


def job_overrides(out: Path) -> str:
    """Overrides of the sweep job in a folder, as `beta=0.1,lr=1e-06`; empty if it is no job."""
    note = out.parent / _NOTES / f"{out.name}.json"
    if not note.is_file():
        return ""
    settings = json.loads(note.read_text(encoding="utf-8")).get("set", {})
    return ",".join(f"{key}={value}" for key, value in settings.items())


def _write_note(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, value)


def _run_child(command: list[str]) -> int:
    """Run a process in a session of its own; forward each signal once. Returns its exit code."""
    with subprocess.Popen(command, start_new_session=True) as child, _forward_signals(child):
        code = child.wait()
    return code if code >= 0 else 128 - code


@contextmanager
def _forward_signals(child: "subprocess.Popen[bytes]") -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def send(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    before = [signal.signal(number, send) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(number, handler)


def final_metric(out: Path, metric: str) -> float:
    """Value of a metric in a finished run; NaN if the run does not have it.

    `eval/NAME` is the held-out metric after the last step; for a run without held-out rows, the
    last value of the training metric with the same meaning. Other names are training metrics.
    """
    after, held_out = manifest.read(out).get("after", {}), metric.removeprefix("eval/")
    if after and held_out != metric:
        return float(after.get(held_out, math.nan))
    name = training_metric(metric)
    try:
        lines = read_json_lines(out / METRICS)
    except FileNotFoundError:
        return math.nan
    values = [row[name] for row in lines if name in row]
    return float(values[-1]) if values else math.nan


def remove_unfinished(sweep: Path) -> None:
    """Remove the notes of jobs that have to run again."""
    for note in (sweep / _NOTES).glob("*.json"):
        if manifest.status(sweep / note.stem) != "complete":
            note.unlink()


def read_rows(sweep: Path, objective: Objective) -> list[dict[str, Any]]:
    """One table row per started job, with its rank, in order of their numbers."""
    notes = sorted((sweep / _NOTES).glob("*.json"), key=lambda path: int(path.stem))
    return _add_ranks([_row(sweep, path, objective.metric) for path in notes], objective)


def _row(sweep: Path, path: Path, metric: str) -> dict[str, Any]:
    note, out = json.loads(path.read_text(encoding="utf-8")), sweep / path.stem
    done = note["exit_code"] == 0
    loss, value = (final_metric(out, name) if done else math.nan for name in ("eval/loss", metric))
    return {
        "job": path.stem,
        **note["set"],
        "status": _status(out, note["exit_code"]),
        "exit_code": note["exit_code"],
        VALUE: "" if math.isnan(value) else value,
        "loss": "" if math.isnan(loss) else loss,
        **{f"eval/{name}": number for name, number in manifest.read(out).get("after", {}).items()},
        "seconds": note["seconds"],
        "folder": str(out),
    }


def _status(out: Path, code: int | str) -> str:
    if code == "":
        return manifest.status(out)
    if code == Interrupted.exit_code:
        return "interrupted"
    return "complete" if code == 0 else "failed"


def _add_ranks(table: list[dict[str, Any]], objective: Objective) -> list[dict[str, Any]]:
    """Insert each row's rank after its job number."""
    ranks = {row["job"]: rank for rank, row in enumerate(_sort_rows(table, objective), start=1)}
    return [
        {"job": row["job"], RANK: "" if row[VALUE] == "" else ranks[row["job"]]} | row
        for row in table
    ]


def _sort_rows(table: Sequence[dict[str, Any]], objective: Objective) -> list[dict[str, Any]]:
    """Sort rows from best to worst, those without a value last.

    Of equal values, the one with the lower KL comes first, then the earlier job.
    """
    return sorted(table, key=lambda row: (_cost(row, objective), row.get("eval/kl", 0.0)))


def _cost(row: dict[str, Any], objective: Objective) -> float:
    """Value to be minimized; infinity if the job has none."""
    return math.inf if row[VALUE] == "" else objective.cost(float(row[VALUE]))


def format_rows(
    table: Sequence[dict[str, Any]], settings: Sequence[str], objective: Objective
) -> str:
    """Format the table with one line per job, the best first.

    Args:
        table: of `read_rows`.
        settings: keys that differ between the jobs.
        objective: metric by which jobs are compared.
    """
    secondary = [name for name in _SECONDARY if any(name in row for row in table)]
    secondary = [name for name in secondary if name != objective.metric]
    columns = [RANK, "job", *settings, "status", VALUE, *secondary]
    head = [shown_metric(table, objective) if name == VALUE else name for name in columns]
    ordered = _sort_rows(table, objective)
    return format_table([head, *([_cell(row.get(c, "")) for c in columns] for row in ordered)])


def shown_metric(table: Sequence[dict[str, Any]], objective: Objective) -> str:
    """Name of the objective; without held-out rows, the training metric in its place."""
    held_out = any(name.startswith("eval/") for row in table for name in row)
    name = objective.metric
    if held_out or not name.startswith("eval/"):
        return name
    return f"{training_metric(name)} (training)"


def _cell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def write_table(sweep: Path, objective: Objective) -> None:
    """Rewrite `sweep.csv` from the notes, so that jobs in several processes lose no row."""
    table = read_rows(sweep, objective)
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(table), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    try:
        write_text_atomic(sweep / TABLE, text.getvalue())
    except CheckpointError as error:
        print(error, file=sys.stderr)


def _columns(table: list[dict[str, Any]]) -> list[str]:
    """All column names once; a column of only some jobs stays at its place in their rows."""
    columns: list[str] = []
    for row in table:
        index = 0
        for name in row:
            if name in columns:
                index = columns.index(name) + 1
            else:
                columns.insert(index, name)
                index += 1
    return columns
