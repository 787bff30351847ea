"""One process with a mesh of one: every path of sharding, on the device that is here."""

import pytest

from rlhf_cli import cli
from rlhf_cli.train.metrics import read_metrics

# ignored where the module is imported, which pytest undoes; no caller changes outputs in place
pytestmark = pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")

STEPS = 3
RUN = ["data=tiny", "train.precision=fp32", "train.batch_size=4", f"max_steps={STEPS}"]
RUN += ["train.warmup_steps=0", "log.preview=false"]
STAGES = {
    "pretrain": ["model=tiny"],
    "sft": ["model=tiny"],
    "reward": ["model=tiny"],
    "dpo": ["model=tiny", "model.reference=copy"],
    "bco": ["model=tiny"],
    "ppo": ["model=tiny", "reward.function=tiny/judge.py:score", "minibatches=2"],
}
KEYS = {
    "full": [],
    "grad_op": ["launch.shard=grad_op"],
    "optimizer on the host": ["launch.offload=optimizer"],
    "all on the host": ["launch.offload=all"],
    "recomputed": ["train.gradient_checkpointing=true"],
    "lora": ["adapter=lora"],
    "qlora": ["adapter=lora", "quant=nf4"],
    "8 bits": ["train.optimizer=adamw_8bit"],
}


def losses(out, stage, *words):
    words = [stage, *STAGES[stage], *RUN, *words, f"output_dir={out}"]
    assert cli.main(words) == 0
    rows = [line for line in read_metrics(out / "metrics.jsonl") if "loss" in line]
    return [line["loss"] for line in rows], [line["grad_norm"] for line in rows]


def require_same(tmp_path, stage, keys):
    """A mesh of one divides nothing, so that the numbers are those without it."""
    own = [key for key in keys if not key.startswith("launch.")]
    plain, norms = losses(tmp_path / "plain", stage, *own)
    shard = [] if "launch.shard=grad_op" in keys else ["launch.shard=full"]
    found, found_norms = losses(tmp_path / "mesh", stage, *shard, *keys)
    assert found == pytest.approx(plain, rel=1e-5, abs=2e-6)
    assert found_norms == pytest.approx(norms, rel=1e-4)


ON = pytest.mark.parametrize(
    "device",
    [pytest.param("gpu", marks=pytest.mark.gpu), pytest.param("cpu", marks=pytest.mark.slow)],
)
"""The device is the one that is here; the mark chooses the machine."""


@ON
@pytest.mark.parametrize("stage", STAGES)
def test_each_stage(tmp_path, stage, device):
    require_same(tmp_path, stage, [])


@ON
@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
def test_each_way_to_hold_the_weights(tmp_path, keys, device):
    require_same(tmp_path, "sft", keys)


@ON
def test_a_checkpoint_of_a_mesh_is_continued_without_it(tmp_path, device):
    whole, _ = losses(tmp_path / "mesh", "sft", "launch.shard=full", "train.save_steps=1")
    step = tmp_path / "mesh" / "checkpoints" / "step-000001"
    found, _ = losses(tmp_path / "plain", "sft", f"resume={step}")
    assert found == pytest.approx(whole[1:], rel=1e-5)
