"""Early stopping, the best weights, trackers and the 8-bit optimizer from the command line."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlhf_cli import cli
from rlhf_cli.train.metrics import Trackers, read_metrics
from tests.helpers import last_of_each, without_machine
from tests.stages.conftest import FAST
from tests.stages.test_stages import stop_after

TOO_FAST = ["lr=3e-1", "train.schedule=constant", "train.eval_steps=1"]
"""The held-out loss falls, then rises."""


def sft(out, *argv):
    words = ["model=tiny", "data=tiny", f"output_dir={out}", *FAST, *argv]
    return cli.main(["sft", *last_of_each(*words)])


def held_out(out):
    return {
        line["step"]: line["eval/loss"]
        for line in read_metrics(out / "metrics.jsonl")
        if "eval/loss" in line
    }


def test_deterministic_algorithms_are_used_where_they_are_asked_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    for name, setting in (("usual", "false"), ("exact", "true")):
        argv = ["sft", "model=tiny", "data=tiny", "data.eval=none", "max_steps=1", *FAST]
        out = f"output_dir={tmp_path / name}"
        assert cli.main([*argv, f"train.deterministic={setting}", out]) == 0
    assert asked == [True]
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.fixture(scope="module")
def best_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("best") / "run"
    argv = ["lr=5e-2", "train.schedule=constant", "train.eval_steps=1", "max_steps=8"]
    assert sft(out, *argv, "train.result=best", "train.keep_checkpoints=1") == 0
    return out


def test_the_result_is_the_best_evaluation(best_run):
    losses = held_out(best_run)
    best = min(losses, key=losses.get)
    assert 0 < best < 8, losses
    kept = sorted(path.name for path in (best_run / "checkpoints").iterdir())
    assert kept == [f"step-{best:06d}", "step-000008"]
    manifest = json.loads((best_run / "manifest.json").read_text())
    assert manifest["after"]["loss"] == losses[best]
    result = load_file(best_run / "model" / "model.safetensors")
    weights = load_file(best_run / "checkpoints" / f"step-{best:06d}" / "weights.safetensors")
    assert all(weights[f"model.{name}"].equal(value) for name, value in result.items())


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_the_result_is_the_starting_weights_where_no_step_is_better(
    best_run, tmp_path, monkeypatch, adapter
):
    # Adam's first steps move every weight by about lr: far enough that no step is better
    argv = [f"model={best_run}", "lr=2", "max_steps=3", "seed=1"]
    argv += ["train.eval_steps=1", "train.save_steps=1"]
    argv += [f"adapter={adapter}"]
    start_argv = [*argv, "lr=1e-30", "max_steps=1"]
    argv += ["train.result=best", "train.keep_checkpoints=1"]
    assert sft(tmp_path / "whole", *argv) == 0
    losses = held_out(tmp_path / "whole")
    assert min(losses, key=losses.get) == 0, losses
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert sft(tmp_path / "parts", *argv) == 130
    assert sft(tmp_path / "parts", *argv) == 0
    assert sft(tmp_path / "start", *start_argv) == 0
    name = "model.safetensors" if adapter == "none" else "adapter_model.safetensors"
    start = load_file(tmp_path / "start" / "model" / name)
    for run in ("whole", "parts"):
        result = load_file(tmp_path / run / "model" / name)
        assert result.keys() == start.keys()
        # a rate of 1e-30 moves only weights that are 0
        assert all(value.allclose(start[n], rtol=0, atol=1e-20) for n, value in result.items())
        manifest = json.loads((tmp_path / run / "manifest.json").read_text())
        assert manifest["after"]["loss"] == losses[0]


def test_a_run_that_does_not_get_better_ends_early(tmp_path):
    argv = [*TOO_FAST, "train.early_stop_patience=2", "max_steps=30", "train.log_steps=100"]
    assert sft(tmp_path / "run", *argv) == 0
    losses = held_out(tmp_path / "run")
    best = min(losses, key=losses.get)
    assert max(losses) == best + 2
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["steps"] == best + 2
    assert "loss" in read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]


def test_what_goes_by_held_out_rows_needs_some(tmp_path, capsys):
    assert sft(tmp_path / "run", "train.early_stop_patience=2") == 2
    assert "without train.eval_steps" in capsys.readouterr().err
    assert sft(tmp_path / "run", "train.result=best", "train.eval_steps=1", "data.eval=none") == 2
    assert "Try data.eval=0.05" in capsys.readouterr().err


def test_tensorboard_gets_what_the_metrics_file_gets(tmp_path):
    assert sft(tmp_path / "run", "log.trackers=[tensorboard]", "max_steps=3") == 0
    folder = tmp_path / "run" / "trackers" / "tensorboard"
    events = EventAccumulator(str(folder)).Reload()
    logged = [event.value for event in events.Scalars("loss")]
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert logged == pytest.approx([line["loss"] for line in lines if "loss" in line])
    assert events.Scalars("eval/loss")[-1].step == 3


def test_a_tracker_that_is_not_there_is_refused(tmp_path, capsys):
    assert sft(tmp_path / "run", "log.trackers=[swanlab]") == 2
    assert "swanlab, which is not installed. Try pip install swanlab" in capsys.readouterr().err
    assert sft(tmp_path / "run", "log.trackers=[tensorbord]") == 2
    assert "tensorboard" in capsys.readouterr().err


def test_a_tracker_that_fails_does_not_end_the_run(tmp_path, capsys):
    class Broken:
        def log(self, values, step):
            raise ConnectionError("gone")

    trackers = Trackers([], tmp_path, {})
    trackers._open = {"broken": Broken()}
    trackers.log(1, {"loss": 1.0})
    trackers.log(2, {"loss": 1.0})
    assert capsys.readouterr().err.count("broken failed (gone); training goes on without") == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_eight_bit_moments_train_and_continue_bitwise(tmp_path, monkeypatch, precision):
    argv = ["train.optimizer=adamw_8bit", f"train.precision={precision}", "max_steps=6", "lr=1e-3"]
    argv.append("train.save_steps=2")
    assert sft(tmp_path / "whole", *argv) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert sft(tmp_path / "parts", *argv) == 130
    assert sft(tmp_path / "parts", *argv) == 0
    last = [tmp_path / name / "checkpoints" / "step-000006" for name in ("whole", "parts")]
    for name in ("weights.safetensors", "optimizer.safetensors"):
        assert (last[0] / name).read_bytes() == (last[1] / name).read_bytes()
    moments = load_file(last[0] / "optimizer.safetensors")
    kinds = {str(value.dtype) for name, value in moments.items() if name.endswith("/state1")}
    assert "torch.uint8" in kinds
    lines = [without_machine(read_metrics(p.parents[1] / "metrics.jsonl")) for p in last]
    assert lines[0] == lines[1]
    assert lines[0][-1]["eval/loss"] < lines[0][0]["eval/loss"]
