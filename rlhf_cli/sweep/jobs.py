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

from rlhf_cli.command_line.words import Setting
from rlhf_cli.errors import CheckpointError, Interrupted
from rlhf_cli.runs import manifest
from rlhf_cli.runs.files import read_json_lines, write_json_atomic, write_text_atomic
from rlhf_cli.runs.folder import METRICS

TABLE, _NOTES = "sweep.csv", ".jobs"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(words: list[str], settings: list[Setting], sweep: Path, number: int) -> float:
    """Run a job to its end and return its final loss; infinity if it failed or has none.

    The process is a new one, so that neither memory nor random state carries over. The loss is
    never NaN, which Optuna refuses; its plugin for Hydra then ends the sweep.

    Args:
        words: The command line that all jobs share, the command first.
        settings: What this job sets beyond.
        sweep: The folder of the sweep; the job's own is its number in it.
        number: Of the job, from 0.

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
    code = _follow([sys.executable, "-m", "rlhf_cli", *words, *own, f"output_dir={out}"])
    if not noted:
        seconds = round(time.monotonic() - start, 1)
        _note(note, {**about, "exit_code": code, "seconds": seconds})
    write_table(sweep)
    if code == Interrupted.exit_code:
        raise KeyboardInterrupt
    loss = final_loss(out) if code == 0 else math.nan
    return math.inf if math.isnan(loss) else loss


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


def final_loss(out: Path) -> float:
    """The loss on held-out rows after the last step, else the last one of training; else NaN."""
    after = manifest.read(out).get("after", {})
    if "loss" in after:
        return float(after["loss"])
    try:
        lines = read_json_lines(out / METRICS)
    except FileNotFoundError:
        return math.nan
    losses = [row["loss"] for row in lines if "loss" in row]
    return float(losses[-1]) if losses else math.nan


def forget_unfinished(sweep: Path) -> None:
    """Drop the notes of jobs that are to run again."""
    for note in (sweep / _NOTES).glob("*.json"):
        if manifest.status(sweep / note.stem) != "complete":
            note.unlink()


def rows(sweep: Path) -> list[dict[str, Any]]:
    """What is known of every job that was started, in order of their numbers."""
    notes = sorted((sweep / _NOTES).glob("*.json"), key=lambda path: int(path.stem))
    return [_row(sweep, path) for path in notes]


def _row(sweep: Path, path: Path) -> dict[str, Any]:
    note, out = json.loads(path.read_text(encoding="utf-8")), sweep / path.stem
    loss = final_loss(out) if note["exit_code"] == 0 else math.nan
    return {
        "job": path.stem,
        **note["set"],
        "status": _status(out, note["exit_code"]),
        "exit_code": note["exit_code"],
        "loss": "" if math.isnan(loss) else loss,
        **{f"eval/{name}": value for name, value in manifest.read(out).get("after", {}).items()},
        "seconds": note["seconds"],
        "folder": str(out),
    }


def _status(out: Path, code: int | str) -> str:
    if code == "":
        return manifest.status(out)
    if code == Interrupted.exit_code:
        return "interrupted"
    return "complete" if code == 0 else "failed"


def write_table(sweep: Path) -> None:
    """Write `sweep.csv` anew from the notes, so that jobs in several processes lose no row."""
    table = rows(sweep)
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
