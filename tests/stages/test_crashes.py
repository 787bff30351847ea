"""A real process, killed without warning: the same command goes on and ends in the same result."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_cli.train.loop import TrainingLoop
from rlhf_cli.train.metrics import read_metrics
from tests.helpers import take_over, without_machine
from tests.stages.conftest import FAST
from tests.stages.test_stages import sft

STEPS = 40


def command(out: Path) -> list[str]:
    argv = ["model=tiny", "data=tiny", f"max_steps={STEPS}", f"output_dir={out}", *FAST]
    argv += ["train.save_steps=1", "train.eval_steps=20"]
    return [sys.executable, "-m", "rlhf_cli", "sft", *argv]


def start(out: Path) -> subprocess.Popen[bytes]:
    with (out.parent / "log.txt").open("ab") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command(out), stderr=log, env=environment)


def writes_another_checkpoint(out: Path) -> bool:
    """Caught between making the folder and renaming it, with whole ones beside it."""
    found = [entry.suffix for entry in (out / "checkpoints").glob("step-*")]
    return ".tmp" in found and "" in found


def kill_when(process: subprocess.Popen[bytes], due) -> bool:
    """Whether the process still ran when its moment came."""
    while process.poll() is None:
        if due():
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
    return False


def results(out: Path) -> tuple[bytes, list[dict[str, float]]]:
    lines = without_machine(read_metrics(out / "metrics.jsonl"))
    return (out / "model" / "model.safetensors").read_bytes(), lines


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "run"
    assert start(out).wait() == 0
    return results(out)


def test_killed_while_it_writes_a_checkpoint(tmp_path, unbroken):
    out = tmp_path / "run"
    assert kill_when(start(out), lambda: writes_another_checkpoint(out))
    assert start(out).wait() == 0
    assert "continuing from step-" in (tmp_path / "log.txt").read_text()
    assert results(out) == unbroken


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tmp_path, unbroken):
    out, draw, kills = tmp_path / "run", random.Random(0), 0
    while kills < 20:
        moment = time.monotonic() + draw.uniform(0, 12)
        if kill_when(start(out), lambda moment=moment: time.monotonic() > moment):
            kills += 1
        elif (out / "model").is_dir():  # it ended before its moment: the next one starts anew
            assert results(out) == unbroken
            out = tmp_path / f"run_{kills}"
    assert start(out).wait() == 0
    assert results(out) == unbroken


def test_sigterm_before_the_first_step_is_an_interrupt(tmp_path):
    out = tmp_path / "run"
    process = start(out)
    while not (out / "manifest.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    assert process.wait(timeout=60) == 130
    assert json.loads((out / "manifest.json").read_text())["status"] == "interrupted"
    assert not (out / ".lock").exists()


@pytest.mark.parametrize(
    "words", [["train.log_steps=1"], ["train.log_steps=9", "train.save_steps=1"]]
)
def test_a_run_whose_folder_was_taken_over_writes_nothing_more(
    words, tmp_path, monkeypatch, capsys
):
    """As after a suspension for longer than the lock of an owner on another host counts."""
    out = tmp_path / "run"
    take = TrainingLoop.train_step

    def suspended(self):
        if self.step != 1:
            return take(self)
        take_over(out)
        held.update(contents_of(out))
        return take(self)

    held = {}
    monkeypatch.setattr(TrainingLoop, "train_step", suspended)
    assert sft(out, "max_steps=3", "data.eval=none", *words) == 1
    assert "was taken over by another process" in capsys.readouterr().err
    now = contents_of(out)
    assert held.keys() == now.keys()
    assert [name for name in held if held[name] != now[name]] == ["log.txt"]


def contents_of(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
