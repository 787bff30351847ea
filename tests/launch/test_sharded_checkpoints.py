"""Runs with sharded weights in real processes, continued with other processes and sharding."""

import json
from pathlib import Path

import pytest
import torch

from rlhf_cli import cli
from rlhf_cli.train.checkpoint import load_weights
from rlhf_cli.train.checkpoint_index import read_index
from tests.helpers import last_of_each, lines_of

pytestmark = pytest.mark.slow

STEPS, HALF = 6, 3
ONE = ("launch.processes=1",)
TWO = ("launch.processes=2", "launch.shard=full")


def train(stage, out, *words):
    argv = [
        "model=tiny",
        "data=tiny",
        "data.eval=none",
        "train.precision=fp32",
        "batch_size=4",
        "lr=1e-3",
        f"max_steps={STEPS}",
        f"train.save_steps={HALF}",
        "log.sample_prompts=0",
        "log.preview=false",
        f"output_dir={out}",
    ]
    assert cli.main([stage, *last_of_each(*argv, *words)]) == 0
    return Path(out)


def resumed(run):
    return f"resume={run / 'checkpoints' / f'step-{HALF:06d}'}"


@pytest.fixture(scope="module", autouse=True)
def _module_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Unbroken runs: in one process, and in two that share the weights."""
    folder = tmp_path_factory.mktemp("runs")
    return train("sft", folder / "one", *ONE), train("sft", folder / "two", *TWO)


def require_one_trajectory(continued, unbroken):
    """Steps in fp32: loss to 1e-5, gradient norm to 1e-4, as of sharded and whole weights."""
    expected = [line for line in lines_of(unbroken) if line["step"] > HALF]
    found = lines_of(continued)
    assert [line["step"] for line in found] == [HALF + 1 + k for k in range(STEPS - HALF)]
    for a, b in zip(found, expected, strict=True):
        assert abs(a["loss"] - b["loss"]) < 1e-5
        assert abs(a["grad_norm"] - b["grad_norm"]) < 1e-4
    one, other = load_weights(unbroken, STEPS), load_weights(continued, STEPS)
    difference = torch.cat([(one[name] - other[name]).abs().flatten() for name in one])
    assert difference.mean() < 1e-6


def test_each_process_writes_its_rows(runs):
    path = runs[1] / "checkpoints" / f"step-{STEPS:06d}"
    index = read_index(path)
    assert sorted(p.name for p in path.glob("weights*")) == [
        f"weights-0000{k}-of-00002.safetensors" for k in range(2)
    ]
    assert any(len(entry.pieces) == 2 for entry in index.tensors["weights"].values())
    assert index.shapes == read_index(runs[0] / "checkpoints" / path.name).shapes


def test_sharded_weights_are_continued_by_one_process(runs, tmp_path, capfd):
    out = train("sft", tmp_path / "run", *ONE, resumed(runs[1]))
    said = "continuing a run of 2 processes (launch.shard=full) on 1 process: "
    assert said in capfd.readouterr().err
    require_one_trajectory(out, runs[0])


def test_whole_weights_are_continued_by_two_that_share_them(runs, tmp_path):
    require_one_trajectory(train("sft", tmp_path / "run", *TWO, resumed(runs[0])), runs[1])


def test_the_same_processes_and_sharding_go_on_bitwise(runs, tmp_path):
    """Also where the checkpoints are written in the background."""
    out = train("sft", tmp_path / "run", *TWO, "train.async_save=true", resumed(runs[1]))
    name = Path("checkpoints", f"step-{STEPS:06d}")
    files = sorted(path.name for path in (runs[1] / name).glob("*.safetensors"))
    assert len(files) == 5
    for file in files:
        assert (out / name / file).read_bytes() == (runs[1] / name / file).read_bytes(), file
    assert json.loads((out / "manifest.json").read_text())["machinery"]["shard"] == "full"


def test_moments_in_8_bits_are_continued_by_one_process(tmp_path):
    """Quantized anew for other rows, so the losses are near, not equal."""
    settings = ("train.optimizer=adamw_8bit",)
    two = train("sft", tmp_path / "two", *TWO, *settings)
    one = train("sft", tmp_path / "one", *ONE, *settings, resumed(two))
    pairs = zip(lines_of(one), lines_of(two)[-(STEPS - HALF) :], strict=True)
    assert all(abs(a["loss"] - b["loss"]) < 0.01 * b["loss"] for a, b in pairs)
