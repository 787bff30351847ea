"""Weights that stay in their files are those of ordinary loading, for any number of ranks."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from rlhf_cli.context import RunContext
from rlhf_cli.distributed.mesh import ShardMesh
from rlhf_cli.distributed.shards import ShardLayout
from rlhf_cli.errors import ModelError
from rlhf_cli.models import stored_origin
from rlhf_cli.models.base_model import BaseOptions, load_base_model
from rlhf_cli.models.config import AdapterConfig, LoadConfig, ModelConfig, QuantConfig
from rlhf_cli.models.load import LoadInputs, load_frozen, load_policy, load_reward_model
from rlhf_cli.models.packed_weights import Packed, can_pack_later
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.quantize import quant_state, quantization_config
from rlhf_cli.models.stored_origin import InMemory, fill_rows
from rlhf_cli.models.stored_tensor import hold
from tests.models.architectures import ARCHITECTURES

BF16, FP32 = torch.bfloat16, torch.float32

MESH = ShardMesh(None, torch.device("cpu"), reshard=True, offload="none")
"""Stands for processes that are not there."""


def load(folder, tokenizer, **options):
    return load_base_model(
        ModelConfig(path=str(folder)), str(folder), tokenizer, BaseOptions(**options)
    )


def layout(shape, ranks, rank):
    """Divide rows as FSDP does: the last ranks have fewer, perhaps none."""
    whole = shape[0] if shape else 1
    size = -(-whole // ranks)
    start = min(rank * size, whole)
    return ShardLayout(tuple(shape), start, min(start + size, whole) - start)


class OneOf:
    """Stands for the sharding of one rank among some, without processes: it cuts parameters."""

    def __init__(self, ranks, rank):
        self.ranks, self.rank, self.layouts = ranks, rank, {}

    def __call__(self, wrapper, **_):
        for name, param in wrapper.named_parameters():
            part = self.layouts[name] = layout(param.shape, self.ranks, self.rank)
            param.data = param.data[part.start : part.start + part.rows]
        return self.layouts


def joined(parts):
    """Put the rows of all ranks below each other."""
    names = [name for name, _ in parts[0].named_parameters()]
    params = [dict(part.named_parameters()) for part in parts]
    return {name: torch.cat([own[name].detach() for own in params]) for name in names}


@pytest.fixture
def unprobed(monkeypatch):
    """Parameters that are cut without processes cannot run."""
    monkeypatch.setattr("rlhf_cli.models.load.probe", lambda *_, **__: None)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_of_1_to_4_ranks_are_those_of_ordinary_loading(saved, tokenizer, name, dtype):
    expected = load(saved(name), tokenizer, dtype=dtype)
    model = load(saved(name), tokenizer, dtype=dtype, deferred=True)
    origins = hold(model)
    params = dict(expected.named_parameters())
    assert list(origins) == list(params)
    assert all(origin.by_rows for origin in origins.values())
    for full, param in params.items():
        for ranks in (1, 2, 3, 4):
            parts = [layout(param.shape, ranks, rank) for rank in range(ranks)]
            rows = [torch.empty(part.rows, *param.shape[1:], dtype=dtype) for part in parts]
            for part, own in zip(parts, rows, strict=True):
                fill_rows(own, origins[full], part.start)
            assert torch.equal(torch.cat(rows), param), (full, ranks)
    buffers = zip(expected.named_buffers(), model.named_buffers(), strict=True)
    assert all(own == other and torch.equal(one, two) for (own, one), (other, two) in buffers)
    assert model.config.to_dict() == expected.config.to_dict()


def setting(folder, tmp_path, compute=BF16, **changes):
    cfg = LoadConfig(model=ModelConfig(path=str(folder)), **changes)
    return cfg, RunContext(torch.device("cpu"), compute, 0, tmp_path)


def require_same(load_role, cfg, ctx, tokenizer, ranks=3, **inputs):
    """Compare ordinary loading with the rows of each rank: values, types, what is trained."""
    expected = dict(load_role(cfg, LoadInputs(tokenizer, ctx, **inputs)).named_parameters())
    parts = []
    for rank in range(ranks):
        shard = OneOf(ranks, rank)
        with patch("rlhf_cli.models.load.shard_model", side_effect=shard):
            sharded = replace(ctx, mesh=MESH)
            parts.append(load_role(cfg, LoadInputs(tokenizer, sharded, **inputs)))
        shapes = {name: part.shape for name, part in shard.layouts.items()}
        assert shapes == {name: tuple(param.shape) for name, param in expected.items()}
    found = joined(parts)
    assert list(found) == list(expected)
    for name, param in expected.items():
        assert torch.equal(found[name], param), name
    for part in parts:
        described = [(p.dtype, p.requires_grad, vars(p)) for p in part.parameters()]
        assert [(d, r) for d, r, _ in described] == [
            (p.dtype, p.requires_grad) for p in expected.values()
        ]
    return expected


ADAPTERS = {
    "none": ("llama", {}),
    "lora": ("llama", {"kind": "lora"}),
    "dora": ("qwen3", {"kind": "dora"}),
    "rslora": ("gpt2", {"kind": "rslora"}),
    "whole-layers": ("llama", {"kind": "lora", "modules_to_save": ["norm", "embed_tokens"]}),
    "output-layer": ("llama", {"kind": "lora", "targets": ["q_proj", "lm_head"]}),
    "experts": ("qwen3_moe", {"kind": "lora"}),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_policy_is_that_of_ordinary_loading(saved, tokenizer, tmp_path, unprobed, name):
    kind, adapter = ADAPTERS[name]
    cfg, ctx = setting(saved(kind), tmp_path, adapter=AdapterConfig(**adapter))
    require_same(load_policy, cfg, ctx, tokenizer)


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "phi3"])
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_rows_of_new_tokens_are_the_mean_of_the_others(
    saved, tokenizer, tmp_path, unprobed, kind, adapter
):
    cfg, ctx = setting(saved(kind), tmp_path, adapter=AdapterConfig(kind=adapter))
    new = [5, len(tokenizer), len(tokenizer) + 2]  # known, just beyond, and further
    found = require_same(load_policy, cfg, ctx, tokenizer, new_tokens=new)
    embeddings = next(param for name, param in found.items() if "embed_tokens" in name)
    assert len(embeddings) == len(tokenizer) + 3


def test_the_mean_of_rows_does_not_depend_on_the_block(monkeypatch):
    matrix = torch.randn(3001, 100)
    known = torch.ones(3001, dtype=torch.bool)
    known[[0, 7]] = False
    origin = InMemory((3001, 100), FP32, matrix)
    for block in (1, 10**6, 10**9):
        monkeypatch.setattr(stored_origin, "BLOCK", block)
        mean = stored_origin.mean_of_rows(origin, frozenset({0, 7, 5000}))
        assert torch.equal(mean, matrix[known].mean(0))


def test_a_frozen_model_is_that_of_ordinary_loading(saved, tokenizer, tmp_path, unprobed):
    cfg, ctx = setting(saved("qwen3"), tmp_path)
    require_same(lambda cfg, inputs: load_frozen(Policy, cfg, inputs), cfg, ctx, tokenizer)


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_the_new_head_of_a_reward_model_has_the_values_of_its_seed(
    saved, tokenizer, tmp_path, unprobed, adapter
):
    cfg, ctx = setting(saved("llama"), tmp_path, adapter=AdapterConfig(kind=adapter))
    found = require_same(load_reward_model, cfg, ctx, tokenizer)
    heads = [param for name, param in found.items() if "score" in name]
    assert all(head.abs().max() > 0 for head in heads)


def test_random_weights_are_those_of_one_process(tokenizer, tmp_path, unprobed):
    model = ModelConfig(init="scratch", path="")
    cfg = LoadConfig(model=model)
    ctx = RunContext(torch.device("cpu"), BF16, 3, tmp_path)
    require_same(load_policy, cfg, ctx, tokenizer, ranks=2)


def save_adapter(folder, base, tokenizer, tmp_path, **adapter):
    """Train an adapter by chance, and save it as a run does; return its folder."""
    cfg, ctx = setting(base, tmp_path, FP32, adapter=AdapterConfig(**adapter))
    policy = load_policy(cfg, LoadInputs(tokenizer, ctx))
    torch.manual_seed(7)
    for param in policy.parameters():
        if param.requires_grad:
            param.data.normal_()
    policy.adapters.save(folder)
    return folder


@pytest.mark.parametrize("start", ["continue", "stack"])
@pytest.mark.parametrize("name", ["dora", "whole-layers", "experts"])
def test_a_saved_adapter_has_the_values_of_its_file(
    saved, tokenizer, tmp_path, unprobed, name, start
):
    kind, adapter = ADAPTERS[name]
    folder = save_adapter(tmp_path / "adapter", saved(kind), tokenizer, tmp_path, **adapter)
    again = {"kind": adapter["kind"] if start == "continue" else "lora", "start": start}
    cfg, ctx = setting(folder, tmp_path, adapter=AdapterConfig(**again))
    require_same(load_policy, cfg, ctx, tokenizer)


def test_an_adapter_with_rows_of_new_tokens_gets_more(saved, tokenizer, tmp_path, unprobed):
    cfg, ctx = setting(saved("llama"), tmp_path, adapter=AdapterConfig(kind="lora"))
    new = [len(tokenizer)]
    policy = load_policy(cfg, LoadInputs(tokenizer, ctx, new_tokens=new))
    policy.adapters.save(tmp_path / "adapter")
    cfg, ctx = setting(tmp_path / "adapter", tmp_path, adapter=AdapterConfig(kind="lora"))
    found = require_same(load_policy, cfg, ctx, tokenizer, new_tokens=[len(tokenizer) + 1])
    rows = [param for name, param in found.items() if "trainable_tokens_delta" in name]
    assert [len(param) for param in rows] == [2, 2]


def test_whole_embeddings_of_an_adapter_replace_those_of_the_base(
    saved, tokenizer, tmp_path, unprobed
):
    cfg, ctx = setting(saved("llama"), tmp_path, FP32, adapter=AdapterConfig(kind="lora"))
    policy = load_policy(cfg, LoadInputs(tokenizer, ctx))
    policy.model.get_input_embeddings().weight.data[:] = 3.0
    policy.adapters.whole_embeddings = True
    policy.adapters.save(tmp_path / "adapter")
    cfg, ctx = setting(tmp_path / "adapter", tmp_path, adapter=AdapterConfig(kind="lora"))
    found = require_same(load_policy, cfg, ctx, tokenizer)
    assert next(param for name, param in found.items() if "embed_tokens" in name)[5, 5] == 3


@pytest.mark.slow
@pytest.mark.parametrize(("name", "adapter"), [("llama-tied", "none"), ("qwen3", "lora")])
def test_real_processes_hold_the_shards_of_ordinary_loading(saved, name, adapter):
    options = ["--standalone", "--nproc-per-node=2", "-m", "tests.models.deferred_rank"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, str(saved(name)), adapter]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("double", [False, True])
def test_weights_are_quantized_one_by_one_as_in_ordinary_loading(saved, tokenizer, name, double):
    pytest.importorskip("bitsandbytes")
    config = quantization_config("nf4", double, BF16)
    expected = load(saved(name), tokenizer, dtype=BF16, quantization=config)
    model = load(saved(name), tokenizer, dtype=BF16, quantization=config, deferred=True)
    params = dict(expected.named_parameters())
    packed = {n for n, param in params.items() if not param.is_floating_point()}
    assert packed
    origins = hold(model)
    assert all(quant_state(layer) is None for layer in model.modules())
    for full, param in params.items():
        parts = [layout(param.shape, 3, rank) for rank in range(3)]
        rows = [torch.empty(part.rows, *param.shape[1:], dtype=param.dtype) for part in parts]
        for part, own in zip(parts, rows, strict=True):
            fill_rows(own, origins[full], part.start)
        assert torch.equal(torch.cat(rows), param), full
        assert origins[full].by_rows == (full not in packed)
    for full in packed:
        place = full.rpartition(".")[0]
        found, ordinary = (quant_state(m.get_submodule(place)) for m in (model, expected))
        for one, other in zip(scales(found), scales(ordinary), strict=True):
            assert torch.equal(one, other)


def scales(state):
    return [state.absmax, *([state.offset, state.state2.absmax] if state.nested else [])]


QUANTIZED = {
    "lora": {"adapter": AdapterConfig(kind="lora")},
    "experts": {"adapter": AdapterConfig(kind="rslora")},
    "continued": {"adapter": AdapterConfig(kind="lora")},
    "dora": {"adapter": AdapterConfig(kind="dora")},
    "frozen": {},
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_quantized_model_is_that_of_ordinary_loading(saved, tokenizer, tmp_path, unprobed, name):
    """Packed bytes and scales are bitwise equal, and only DoRA reads the base before that."""
    bnb = pytest.importorskip("bitsandbytes")
    folder = saved("qwen3_moe" if name == "experts" else "llama")
    if name == "continued":
        folder = save_adapter(tmp_path / "adapter", folder, tokenizer, tmp_path, kind="lora")
    cfg, ctx = setting(folder, tmp_path, quant=QuantConfig(kind="nf4"), **QUANTIZED[name])
    role = partial(load_frozen, Policy) if name == "frozen" else load_policy
    real, quantized, states = Packed.quantized, [], []

    def record(packed):
        quantized.append(packed)
        return real(packed)

    def load_role(*args):
        loaded = role(*args)
        layers = [m for m in loaded.modules() if isinstance(m, bnb.nn.Linear4bit)]
        states.append([quant_state(layer) for layer in layers])
        return loaded

    with patch.object(Packed, "quantized", record):
        require_same(load_role, cfg, ctx, tokenizer, ranks=2)
    ordinary, *ranks = states
    assert len(ordinary) >= 8
    assert len(quantized) == (0 if name == "dora" else 2 * len(ordinary))
    for found in ranks:
        for one, other in zip(found, ordinary, strict=True):
            assert all(map(torch.equal, scales(one), scales(other)))


@pytest.mark.parametrize(
    ("saved_as", "new", "expected"),
    [
        ({}, {"kind": "lora"}, True),
        ({}, {"kind": "none"}, True),
        ({}, {"kind": "dora"}, False),
        ({}, {"kind": "lora", "modules_to_save": ["norm"]}, False),
        ({"use_dora": True}, {"kind": "none"}, False),
        ({"modules_to_save": ["norm"]}, {"kind": "lora"}, False),
    ],
)
def test_adapters_that_read_the_base_keep_it_from_being_packed_later(
    tmp_path, saved_as, new, expected
):
    LoraConfig(r=2, **saved_as).save_pretrained(tmp_path)
    assert can_pack_later(AdapterConfig(**new), [tmp_path]) == expected


def damaged(saved, tmp_path, damage):
    """A copy of a model in several files, with one of them damaged."""
    folder = tmp_path / "damaged"
    shutil.copytree(saved("llama"), folder)
    damage(sorted(folder.glob("*.safetensors"))[1])
    return folder


def truncate(file):
    os.truncate(file, file.stat().st_size - 100)


def widen(file):
    weights = {name: torch.cat([value, value]) for name, value in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("damage", [truncate, widen, Path.unlink])
def test_damaged_weights_are_refused_as_in_ordinary_loading(saved, tokenizer, tmp_path, damage):
    folder = damaged(saved, tmp_path, damage)
    with pytest.raises(ModelError, match=r"^model\.path: ") as ordinary:
        load(folder, tokenizer)
    with pytest.raises(ModelError) as deferred:
        load(folder, tokenizer, deferred=True)
    assert str(deferred.value) == str(ordinary.value)
    assert "\n" not in str(ordinary.value)


def test_weights_that_change_before_they_are_read_are_refused(saved, tokenizer, tmp_path):
    folder = damaged(saved, tmp_path, lambda _: None)
    origins = hold(load(folder, tokenizer, deferred=True))
    widen(next(iter(sorted(folder.glob("*.safetensors")))))
    with pytest.raises(ModelError, match=r"^model\.path: .* was changed"):
        [origin.whole() for origin in origins.values()]
