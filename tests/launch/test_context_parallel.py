"""Runs whose processes share the tokens of each micro-batch, beside a run of one process."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from rlhf_cli import cli
from rlhf_cli.launch import launcher
from rlhf_cli.launch.config import LaunchConfig
from rlhf_cli.launch.slurm.config import SlurmConfig
from rlhf_cli.models.config import TrainedModelConfig
from rlhf_cli.stages.config import StageConfig
from rlhf_cli.stages.ppo.config import PPOConfig
from tests.helpers import last_of_each, lines_of
from tests.launch.test_processes import when_logged

PROMPT = "How deep is the sea, and who has been at its bottom, by what means, and in which year? "


@pytest.fixture(autouse=True)
def _four_cores(monkeypatch):
    """Four processes on any machine, of one thread each."""
    monkeypatch.setattr(launcher, "cores", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module", autouse=True)
def _module_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Five rows of each kind; prompts of pairs are long enough to be computed once."""
    folder = tmp_path_factory.mktemp("data")
    completions = [" Deep, " * (1 + 3 * i) for i in range(5)]
    sft = [{"prompt": "How deep?", "completion": text} for text in completions]
    pairs = [{"prompt": PROMPT, "chosen": text, "rejected": " No." * 3} for text in completions]
    for name, lines in (("sft", sft), ("dpo", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def train(out, rows, stage="sft", *changes, processes=1, context=1, steps=20):
    words = last_of_each(
        stage,
        "model=tiny",
        f"data={rows / stage}.jsonl",
        "data.eval=tiny",
        "train.precision=fp32",
        "batch_size=4",
        "lr=1e-3",
        f"max_steps={steps}",
        "train.save_steps=10",
        f"launch.processes={processes}",
        f"launch.context_parallel={context}",
        f"output_dir={out}",
        *changes,
    )
    return cli.main(words)


def assert_one(out, divided, steps=20):
    """The losses and gradient norms of 20 steps in fp32, and the evaluation of the result."""
    one, several = lines_of(out), lines_of(divided)
    assert [line["step"] for line in one] == [line["step"] for line in several]
    for name, most in (("loss", 1e-5), ("grad_norm", 1e-4)):
        pairs = [(a[name], b[name]) for a, b in zip(one, several, strict=True) if name in a]
        assert len(pairs) == steps
        assert max(abs(a - b) / abs(a) for a, b in pairs) < most
    for name in ("lr", "computed_per_token"):
        found = [[line.get(name) for line in lines] for lines in (one, several)]
        assert found[1] == pytest.approx(found[0])
    expected, found = (json.loads((run / "manifest.json").read_text()) for run in (out, divided))
    assert found["before"]["loss"] == pytest.approx(expected["before"]["loss"], rel=1e-5)
    # before the first step a margin is 0 but for rounding, and so is its sign
    assert found["after"] == pytest.approx(expected["after"], rel=1e-4, abs=1e-6)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, rows):
    out = tmp_path_factory.mktemp("whole") / "run"
    assert train(out, rows) == 0
    return out


@pytest.fixture(scope="module")
def divided(tmp_path_factory, rows):
    out = tmp_path_factory.mktemp("divided") / "run"
    assert train(out, rows, processes=2, context=2) == 0
    return out


def test_two_processes_that_share_tokens_are_one(whole, divided):
    assert_one(whole, divided)


def test_rows_and_processes_are_counted_once(divided):
    manifest = json.loads((divided / "manifest.json").read_text())
    assert manifest["processes"] == len(manifest["peak_memory_bytes_by_rank"]) == 2
    assert manifest["machinery"]["context_parallel"] == 2
    assert len((divided / "fixed_samples.jsonl").read_text().splitlines()) > 0
    assert "step 20/20" in (divided / "ranks" / "rank-1.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "context"), [(4, 4), (4, 2)])
def test_four_processes_are_one(whole, rows, tmp_path, processes, context):
    """With 2 x 2, a step of one row leaves the second group without any."""
    assert train(tmp_path / "run", rows, processes=processes, context=context) == 0
    assert_one(whole, tmp_path / "run")


@pytest.mark.slow
def test_ranks_that_share_weights_and_tokens_are_one(whole, rows, tmp_path):
    """Gradients are summed over all ranks as each layer's backward pass ends."""
    assert train(tmp_path / "run", rows, "sft", "launch.shard=full", processes=4, context=2) == 0
    assert_one(whole, tmp_path / "run")


DPO = {
    "stored reference": ("model.reference=stored",),
    "copied reference, recomputed": ("model.reference=copy", "train.gradient_checkpointing=true"),
    "adapter": ("adapter=lora",),
    "adapter, copied": ("adapter=lora", "model.reference=copy"),
    "moving reference": ("model.reference=copy", "sync_steps=4"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DPO)
def test_dpo_is_that_of_one_process(rows, tmp_path, name):
    changes = DPO[name]
    assert train(tmp_path / "1", rows, "dpo", *changes) == 0
    assert min(line.get("computed_per_token", 1) for line in lines_of(tmp_path / "1")) < 0.8
    for processes, context in ((4, 2), (2, 2), (4, 4)) if name == "stored reference" else ((4, 2),):
        out = tmp_path / f"{processes}x{context}"
        assert train(out, rows, "dpo", *changes, processes=processes, context=context) == 0
        assert_one(tmp_path / "1", out)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "reward", "bco"])
def test_other_stages_are_those_of_one_process(rows, tmp_path, stage):
    """Five steps: the reward model's loss falls to where Adam magnifies rounding."""
    options = {"steps": 5}
    for processes, context in ((1, 1), (4, 2)):
        out = tmp_path / str(processes)
        words = {"processes": processes, "context": context}
        assert train(out, rows, stage, "data=tiny", **words, **options) == 0
    assert_one(tmp_path / "1", tmp_path / "4", **options)


@pytest.mark.slow
def test_a_continued_run_is_the_unbroken_one_to_the_bit(divided, rows, tmp_path, capfd):
    out = tmp_path / "run"
    when_logged(out, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train(out, rows, processes=2, context=2) == 130
    assert train(out, rows, processes=2, context=1) == 1
    assert "context_parallel: 2 -> 1" in capfd.readouterr().err
    assert train(out, rows, processes=2, context=2) == 0
    assert lines_of(out) == lines_of(divided)
    name = "checkpoints/step-000020/weights.safetensors"
    unbroken, continued = (load_file(run / name) for run in (divided, out))
    assert all(torch.equal(unbroken[key], continued[key]) for key in unbroken)


@pytest.mark.slow
def test_rows_are_named_once_when_the_loss_is_not_finite(rows, tmp_path, capfd):
    assert train(tmp_path / "run", rows, "sft", "lr=1e38", processes=2, context=2) == 5
    shown = capfd.readouterr().err
    named = [line for line in shown.splitlines() if line.endswith("loss is not finite")]
    assert len(named) == len(set(named)) > 0


def test_what_cannot_be_divided_is_refused():
    two = LaunchConfig(processes=2, context_parallel=2)
    [problem] = [one for one in PPOConfig(launch=two).problems() if "context_parallel" in one]
    assert "ppo decodes each response" in problem
    assert "Try launch.context_parallel=1" in problem
    padded = StageConfig(launch=two, model=TrainedModelConfig(attention="sdpa"))
    [problem] = [one for one in padded.problems() if "context_parallel" in one]
    assert problem.startswith("model.attention: got sdpa with launch.context_parallel=2")
    fine = StageConfig(launch=two, model=TrainedModelConfig(attention="per_row"))
    assert not [one for one in fine.problems() if "context_parallel" in one]


def test_the_processes_of_torchrun_are_counted(monkeypatch):
    """It gives their number in the environment, and `launch.processes` is left out."""
    cfg = LaunchConfig(context_parallel=2)
    [problem] = cfg.problems()
    assert problem.startswith("launch.processes: got 1; need a multiple of")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert cfg.problems() == []
    monkeypatch.setenv("WORLD_SIZE", "3")
    [problem] = cfg.problems()
    assert problem.startswith("WORLD_SIZE: got 3; need a multiple of")
    assert problem.endswith("Try to start 2 processes")


def test_what_a_shell_exports_does_not_count_the_processes_of_a_job(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert LaunchConfig(processes=2).started == 2
    monkeypatch.setenv("RANK", "0")
    slurm = SlurmConfig(nodes=2, gpus_per_node=8)
    assert LaunchConfig(kind="slurm", slurm=slurm).started == 16
