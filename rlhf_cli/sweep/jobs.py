"""One job of a sweep: a process of its own, and what is noted about it."""

import csv
import io
import json
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rlhf_cli.config.args import Override
from rlhf_cli.errors import CheckpointError, Interrupted
from rlhf_cli.runs import manifest
from rlhf_cli.runs.contents import METRICS
from rlhf_cli.runs.files import read_json_lines, write_json_atomic, write_text_atomic
from rlhf_cli.sweep.config import Objective, training_metric
from rlhf_cli.sweep.table import VALUE, with_ranks

TABLE, _NOTES = "sweep.csv", ".jobs"
_PREVIEW = "log.preview"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(
    words: list[str], settings: list[Override], sweep: Path, number: int, objective: Objective
) -> float:
    """Run a job to its end and return what a sweeper minimizes; infinity if it failed or has none.

    The process is a new one, so that neither memory nor random state carries over. The value is
    never NaN, which Optuna refuses; its plugin for Hydra then ends the sweep.

    Args:
        words: The command line that all jobs share, the command first.
        settings: What this job sets beyond.
        sweep: The folder of the sweep; the job's own is its number in it.
        number: Of the job, from 0.
        objective: What the jobs are compared by.

    Raises:
        KeyboardInterrupt: A signal ended the job.
    """
    out, note = sweep / str(number), sweep / _NOTES / f"{number}.json"
    noted = note.is_file() and manifest.status(out) == "complete"
    own = [f"{setting.key}={setting.text}" for setting in settings]
    about = {"set": {setting.key: setting.text for setting in settings}}
    print(f"job {number}: {' '.join(own)}".rstrip(": "), file=sys.stderr, flush=True)
    if not noted:  # at once: a launcher may kill this process while the job writes its checkpoint
        _note(note, {**about, "exit_code": "", "seconds": ""})
    start = time.monotonic()
    quiet = _without_preview(words, settings) if number else []
    code = _follow([sys.executable, "-m", "rlhf_cli", *words, *quiet, *own, f"output_dir={out}"])
    if not noted:
        seconds = round(time.monotonic() - start, 1)
        _note(note, {**about, "exit_code": code, "seconds": seconds})
    write_table(sweep, objective)
    if code == Interrupted.exit_code:
        raise KeyboardInterrupt
    cost = objective.cost(final(out, objective.metric)) if code == 0 else math.nan
    return math.inf if math.isnan(cost) else cost


def _without_preview(words: list[str], settings: list[Override]) -> list[str]:
    """The word that leaves out the first example, which the first job has shown for all of them."""
    own = [setting.key for setting in settings]
    other_rows = any(key.startswith(("data", "model")) for key in own)
    given = _PREVIEW in own or any(word.startswith(f"{_PREVIEW}=") for word in words)
    return [] if other_rows or given else [f"{_PREVIEW}=false"]


def settings_of_job(out: Path) -> str:
    """What the job of a sweep in a folder sets, as in `beta=0.1,lr=1e-06`; empty for no job."""
    note = out.parent / _NOTES / f"{out.name}.json"
    if not note.is_file():
        return ""
    settings = json.loads(note.read_text(encoding="utf-8")).get("set", {})
    return ",".join(f"{key}={value}" for key, value in settings.items())


def _note(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, value)


def _follow(command: list[str]) -> int:
    """Run a process and pass signals on, each once: its session is not the terminal's."""
    with subprocess.Popen(command, start_new_session=True) as child, _passed_on(child):
        code = child.wait()
    return code if code >= 0 else 128 - code


@contextmanager
def _passed_on(child: "subprocess.Popen[bytes]") -> Iterator[None]:
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


def final(out: Path, metric: str) -> float:
    """A metric of a finished run; NaN where it has none.

    `eval/NAME` is that of the held-out rows after the last step; of a run that has no held-out rows
    it is the last one of training with the same meaning. Every other name is one of training.
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


def forget_unfinished(sweep: Path) -> None:
    """Drop the notes of jobs that are to run again."""
    for note in (sweep / _NOTES).glob("*.json"):
        if manifest.status(sweep / note.stem) != "complete":
            note.unlink()


def rows(sweep: Path, objective: Objective) -> list[dict[str, Any]]:
    """What is known of every job that was started, in order of their numbers, with ranks."""
    notes = sorted((sweep / _NOTES).glob("*.json"), key=lambda path: int(path.stem))
    return with_ranks([_row(sweep, path, objective.metric) for path in notes], objective)


def _row(sweep: Path, path: Path, metric: str) -> dict[str, Any]:
    note, out = json.loads(path.read_text(encoding="utf-8")), sweep / path.stem
    done = note["exit_code"] == 0
    loss, value = (final(out, name) if done else math.nan for name in ("eval/loss", metric))
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


def write_table(sweep: Path, objective: Objective) -> None:
    """Write `sweep.csv` anew from the notes, so that jobs in several processes lose no row."""
    table = rows(sweep, objective)
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(table), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    try:
        write_text_atomic(sweep / TABLE, text.getvalue())
    except CheckpointError as error:
        print(error, file=sys.stderr)


def _columns(table: list[dict[str, Any]]) -> list[str]:
    """Every column once; those that only some jobs have stand where the first one has them."""
    columns: list[str] = []
    for row in table:
        place = 0
        for name in row:
            if name in columns:
                place = columns.index(name) + 1
            else:
                columns.insert(place, name)
                place += 1
    return columns
