"""Every stage with adapters on a sharded base, in 4 bits too, is that of one process."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from rlhf_cli import cli
from rlhf_cli.resources import shipped_model
from rlhf_cli.train.metrics import read_metrics
from tests.helpers import tiny_llama
from tests.stages.test_sharded_stages import (  # noqa: F401  (fixtures of this module too)
    FULL,
    GRAD_OP,
    HYBRID,
    _module_cache,
    files,
    pools,
    words_of,
)

LORA = ("adapter=lora", "adapter.rank=4")
QLORA = (*LORA, "quant=nf4")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with random weights, whose output layer is not tied to the embeddings."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = AutoTokenizer.from_pretrained(shipped_model())
    shape = {"hidden_size": 64, "tie_word_embeddings": False}  # rows of whole 4-bit blocks
    tiny_llama(vocab_size=len(tokenizer), **shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def started(tmp_path_factory, files, base):  # noqa: F811
    """Stage -> a trained adapter on the base."""
    found = {}

    def start(stage):
        if stage not in found:
            found[stage] = tmp_path_factory.mktemp(stage) / "run"
            words = words_of(stage, files, base, found[stage], *LORA, "max_steps=3")
            assert cli.main(words) == 0
        return found[stage] / "model"

    return start


@pytest.fixture(scope="module")
def compare(tmp_path_factory, files, base, started, pools):  # noqa: F811
    """Runs a stage with adapters in one process and sharded, and compares the runs.

    DoRA is compared with processes that share nothing.
    """
    alone = {}

    def run(stage, *changes, shard=(FULL,), size=2):
        model = base
        words = [word.replace("REWARD", str(started("reward"))) for word in changes if word]
        if "continued" in words:
            words.remove("continued")
            model = started("sft")
        folder = tmp_path_factory.mktemp("runs")
        # DoRA divides by norms, which enlarges the rounding of another order of sums
        whole = size if "adapter=dora" in words else 1
        key = (stage, whole, *words)
        if key not in alone:
            alone[key] = folder / "one"
            arguments = words_of(stage, files, model, alone[key], *words)
            if whole > 1:
                pools(size).run(arguments)
            else:
                assert cli.main(arguments) == 0
        several = folder / "several"
        pools(size).run(words_of(stage, files, model, several, *words, *shard))
        require_equal(alone[key], several)

    return run


def require_equal(one, several):
    """Loss to 1e-5 and gradient norm to 1e-4, relative, at each step, and the saved adapter."""
    expected, got = (read_metrics(run / "metrics.jsonl") for run in (one, several))
    assert [line["step"] for line in got] == [line["step"] for line in expected]
    for a, b in zip(expected, got, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() & {"loss", "eval/loss", "grad_norm"}:
            most = 1e-5 if name.endswith("loss") else 1e-4
            assert b[name] == pytest.approx(a[name], rel=most, abs=most / 100), name
    weights = [load_file(run / "model" / "adapter_model.safetensors") for run in (one, several)]
    assert weights[0].keys() == weights[1].keys()
    off = torch.cat([(weights[0][n] - weights[1][n]).abs().flatten() for n in weights[0]])
    # Adam divides rounding by a small second moment, so not to the last bit
    assert off.max() < 1e-3
    assert off.mean() < 1e-6


ROLES = ("value=adapter", "reward.model=REWARD")
# stage, changes
CASES = {
    "sft": ("sft", *LORA, "data.eval=ROWS/sft.jsonl"),
    "sft, qlora": ("sft", *QLORA, "train.gradient_checkpointing=true"),
    "sft, qlora, output layer": ("sft", *QLORA, "quant.output_layer=true"),
    "sft, dora": ("sft", "adapter=dora", "adapter.rank=4"),
    "sft, whole layers": ("sft", *LORA, "adapter.modules_to_save=[norm,embed_tokens]"),
    "sft, stacked": ("sft", *LORA, "adapter.start=stack", "continued"),
    "reward": ("reward", *LORA),
    "reward, qlora": ("reward", *QLORA, "data.eval=ROWS/pairs.jsonl"),
    "dpo": ("dpo", *LORA, "data.eval=ROWS/pairs.jsonl"),
    "dpo, qlora": ("dpo", *QLORA),
    "dpo, continued": ("dpo", "model.reference=copy", "continued"),
    "tr-dpo": ("dpo", "model.reference=copy", "sync_steps=2", *LORA),
    "kto": ("dpo", *LORA, "loss_type=kto", "data=ROWS/labels.jsonl"),
    "bco": ("bco", *LORA),
    "distill": ("distill", *QLORA, "teacher=adapter_off", "lr=1e-1"),
    "ppo": ("ppo", *LORA, *ROLES),
    "ppo, recomputed": ("ppo", *LORA, *ROLES, "train.gradient_checkpointing=true"),
    "ppo, qlora": ("ppo", *QLORA, "value=shared"),
    "ppo, qlora, value adapter": ("ppo", *QLORA, "value=adapter"),
    "ppo, dora": ("ppo", "adapter=dora", "adapter.rank=4", "value=adapter"),
}
CORE = ("sft, qlora", "ppo")


@pytest.mark.parametrize("name", CORE)
def test_two_processes_are_one(compare, name):
    stage, *changes = CASES[name]
    compare(stage, *changes, "max_steps=2")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("size", "shard"),
    [(2, (FULL,)), (2, (GRAD_OP,)), (4, HYBRID)],
    ids=["2 full", "2 grad_op", "4 hybrid"],
)
def test_twenty_steps_are_those_of_one_process(compare, name, size, shard):
    stage, *changes = CASES[name]
    steps = "max_steps=20" if stage != "ppo" else "max_steps=6"
    compare(stage, *changes, steps, size=size, shard=shard)
