"""How a step is cut, laid out and padded does not change what is learned."""

import pytest

from rlhf_cli import cli
from rlhf_cli.models.policy import Policy
from rlhf_cli.train.metrics import read_metrics

STEPS = 20


def run(out, *argv):
    """20 steps of 8 rows in fp32; dropout is off."""
    words = ["model=tiny", "data=tiny", "data.eval=none", "train.precision=fp32", "lr=1e-3"]
    words += ["batch_size=8", f"max_steps={STEPS}", f"output_dir={out}"]
    assert cli.main(["sft", *words, *argv]) == 0
    return read_metrics(out / "metrics.jsonl")


@pytest.fixture(scope="module")
def one_batch(tmp_path_factory):
    return run(tmp_path_factory.mktemp("one") / "run")


@pytest.mark.parametrize(
    "argv",
    [
        ["train.micro_batch_tokens=1"],
        ["model.attention=sdpa"],
        ["model.attention=eager", "train.micro_batch_tokens=100"],
        ["kernels=none"],
        ["train.gradient_checkpointing=true"],
    ],
    ids=["eight micro-batches of 1", "padded", "padded, eager, in parts", "plain", "recomputed"],
)
def test_the_same_twenty_steps(tmp_path, one_batch, argv):
    require_equal(one_batch, run(tmp_path / "run", *argv))


def test_the_same_twenty_steps_padded_on_the_left(tmp_path, one_batch, monkeypatch):
    monkeypatch.setattr(Policy, "padding_side", "left")
    require_equal(one_batch, run(tmp_path / "run", "model.attention=sdpa"))


def require_equal(expected, got):
    """Loss to 1e-5 and gradient norm to 1e-4 at each step; ten times closer in the mean."""
    for name, most in (("loss", 1e-5), ("grad_norm", 1e-4)):
        off = [abs(a[name] - b[name]) for a, b in zip(expected, got, strict=True)]
        assert len(off) == STEPS
        assert max(off) < most
        assert sum(off) / STEPS < most / 10
