"""Adapters on a base whose weights processes share, in 4 bits too, train as in one process.

fp32 sums over ranks in another order than over rows: relative differences of some 1e-7 in the first
steps, which AdamW's division by small second moments enlarges in a parameter now and then.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rlhf_cli import cli
from rlhf_cli.context import RunContext
from rlhf_cli.models.config import AdapterConfig, LoadConfig, ModelConfig
from rlhf_cli.models.load import LoadInputs, load_policy
from rlhf_cli.resources import shipped_model
from tests.rank_processes import run_ranks

pytest.importorskip("bitsandbytes")

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
EXPERTS = {"moe_intermediate_size": 24, "num_experts": 5, "num_experts_per_tok": 2}
ARCHITECTURES = {
    "llama": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "experts": ("qwen3_moe", EXPERTS),
}
NF4 = {"kind": "nf4"}
ROLES = {"clones": ["start", "value"], "roles": ["start", "value", "reference"]}
CLONES = {"clones": ["start", "value"], "roles": ["start", "value"]}

CORE = {
    "lora": {"base": "tied"},
    "qlora": {
        "base": "llama",
        "quant": NF4 | {"output_layer": True},
        "checkpointing": True,
    },
    "roles of dora in 4 bits": {
        "base": "llama",
        "quant": NF4,
        "adapter": {"kind": "dora"},
        **ROLES,
    },
    "a frozen model in 4 bits": {
        "base": "llama",
        "action": "frozen",
        "quant": NF4 | {"output_layer": True},
    },
    "adapters on adapters": {
        "base": "resized",
        "action": "save",
        "adapter": {"start": "stack"},
    },
    "8 bits": {"base": "llama", "action": "refuse", "quant": {"kind": "int8"}},
}
MATRIX = {
    "lora": {"base": "llama", "steps": 20},
    "grad_op": {"base": "llama", "launch": {"shard": "grad_op"}},
    "lora, gradient checkpointing": {"base": "llama", "checkpointing": True, **ROLES},
    "dora": {"base": "tied", "adapter": {"kind": "dora"}, **ROLES},
    "experts": {"base": "experts", **ROLES},
    "rslora on experts": {
        "base": "experts",
        "adapter": {"kind": "rslora"},
        "checkpointing": True,
    },
    "layers trained whole": {
        "base": "llama",
        "adapter": {"modules_to_save": ["embed_tokens", "norm"]},
        **CLONES,
    },
    "rows of tokens": {"base": "tied", "new_tokens": [5, 6], **CLONES},
    "rows of tokens, two layers": {"base": "llama", "new_tokens": [5, 6], **CLONES},
    "reward": {"base": "llama", "reward": True},
    "reward in 4 bits": {"base": "llama", "reward": True, "quant": NF4},
    "nf4": {"base": "llama", "quant": NF4, "steps": 20},
    "nf4, plain scales": {
        "base": "tied",
        "quant": NF4 | {"double": False},
        "launch": {"shard": "grad_op"},
    },
    "nf4, output layer": {"base": "llama", "quant": NF4 | {"output_layer": True}, **ROLES},
    "nf4, weights on the host": {"base": "llama", "quant": NF4, "launch": {"offload": "all"}},
    "nf4, optimizer on the host": {
        "base": "llama",
        "quant": NF4,
        "launch": {"offload": "optimizer"},
    },
    "bf16": {"base": "llama", "bf16": True},
    "nf4, bf16": {"base": "llama", "bf16": True, "quant": NF4, "checkpointing": True},
}
HYBRID = {
    "lora": {"base": "tied"},
    "nf4": {"base": "llama", "quant": NF4, "checkpointing": True},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run cases in several processes; return the results of the ranks by the case's name."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = AutoTokenizer.from_pretrained(shipped_model())

    def save(name):
        if name == "resized" and not (folder / name).exists():
            save_resized(save("llama"), folder / name, tokenizer)
        elif not (folder / name).exists():
            kind, changes = ARCHITECTURES[name]
            torch.manual_seed(1)
            config = AutoConfig.for_model(kind, **{**SIZES, **changes})
            config.vocab_size = len(tokenizer)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
        return str(folder / name)

    def start(cases, count):
        described = [
            {"name": name, "folder": save(case["base"]), "out": str(folder / "saved"), **case}
            for name, case in cases.items()
        ]
        file = tmp_path_factory.mktemp("run") / "cases.json"
        file.write_text(json.dumps(described))
        logs = file.parent / "logs"
        run_ranks("tests.models.sharded_adapters_rank", count, logs, str(file))
        found = [Path(f"{file}.{rank}").read_text().splitlines() for rank in range(count)]
        by_case = zip(*[map(json.loads, lines) for lines in found], strict=True)
        return dict(zip(cases, by_case, strict=True))

    return start


def save_resized(base, out, tokenizer):
    """Save an adapter with whole embeddings beside its matrices, which replace the base's."""
    ctx = RunContext(torch.device("cpu"), torch.float32, 0, out)
    cfg = LoadConfig(
        model=ModelConfig(path=base), adapter=AdapterConfig(kind="lora", rank=4), kernels=["eager"]
    )
    policy = load_policy(cfg, LoadInputs(tokenizer, ctx))
    policy.model.get_input_embeddings().weight.data[:] = 0.25
    policy.adapters.whole_embeddings = True
    policy.adapters.save(out)
    tokenizer.save_pretrained(out)


def require_equal(ranks):
    """The trajectory is that of one process."""
    for found in ranks:
        assert found["loss"] < 1e-5, found
        assert found["norm"] < 1e-4, found
        assert found["params"] < 1e-3, found
        assert found["moved"] > 1e-2  # of the learning rate: AdamW's first steps have its size


@pytest.fixture(scope="module")
def core(run):
    return run(CORE, 2)


@pytest.mark.parametrize("name", ["lora", "qlora", "roles of dora in 4 bits"])
def test_an_adapter_trains_as_in_one_process(core, name):
    require_equal(core[name])


@pytest.mark.parametrize("name", ["lora", "qlora"])
def test_two_processes_hold_half_of_the_base_each(core, name):
    ranks = core[name]
    for key, whole in (("bytes", "whole_bytes"), ("packed", "whole_packed")):
        held = sum(found[key] for found in ranks)
        assert held == ranks[0][whole]
        assert max(found[key] for found in ranks) <= 0.51 * held
    assert bool(ranks[0]["packed"]) == (name == "qlora")


def test_a_frozen_model_in_4_bits_gives_the_same_with_and_without_gathering(core):
    for found in core["a frozen model in 4 bits"]:
        assert found["off"] < 1e-5


def test_adapters_below_the_trained_one_and_their_embeddings_are_saved(core, run):
    """The one below comes back as it was."""
    folder = Path(core["adapters on adapters"][0]["out"])
    found = load_file(folder / "stacked_0" / "adapter_model.safetensors")
    expected = load_file(folder.parent / "resized" / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert sum("embed_tokens" in name for name in found) == 1
    assert (folder / "adapter_model.safetensors").exists()


def test_8_bit_weights_are_refused(core):
    for found in core["8 bits"]:
        assert found["error"].startswith("quant.kind")
        assert "launch.shard=none" in found["error"]


@pytest.mark.parametrize(
    ("words", "key", "advice"),
    [
        (["quant=int8", "adapter=lora"], "quant.kind", "quant.kind=nf4"),
        (
            ["train.optimizer=paged_adamw_8bit", "launch.offload=all"],
            "train.optimizer",
            "train.optimizer=adamw_8bit",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_before_torch(capsys, tmp_path, words, key, advice):
    common = ["sft", "model=tiny", "data=tiny", "launch.shard=full", f"output_dir={tmp_path / 'r'}"]
    assert cli.main([*common, *words]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert key in line
    assert advice in line


@pytest.mark.slow
def test_every_kind_of_adapter_trains_as_in_one_process(run):
    for ranks in run(MATRIX, 2).values():
        require_equal(ranks)


@pytest.mark.slow
def test_replicas_of_sharded_models_train_as_one_process(run):
    hybrid = {"launch": {"shard": "hybrid", "replicas": 2}}
    for ranks in run({name: case | hybrid for name, case in HYBRID.items()}, 4).values():
        require_equal(ranks)
        assert 2 * ranks[0]["whole_bytes"] == sum(found["bytes"] for found in ranks)


@pytest.mark.slow
def test_8_bit_moments_of_shards(run):
    """Near one process: blocks of 256 values begin elsewhere, and small shards keep fp32 moments.

    Adam's steps of 1e-2 differ by the rounding of 8-bit moments, a few percent each.
    """
    case = {"base": "tied", "adapter": {"kind": "none"}, "optimizer": "adamw_8bit"}
    offload = {"launch": {"offload": "optimizer"}}
    for ranks in run({"on the device": case, "on the host": case | offload}, 2).values():
        for found in ranks:
            assert found["loss"] < 2e-3, found
            assert found["params"] < 0.02, found
            assert found["moved"] > 1e-2
