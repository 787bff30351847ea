"""A merge whose weights are computed one by one is PEFT's merge in memory, bit for bit."""

from dataclasses import replace

import pytest
import torch

from rlhf_cli.context import RunContext
from rlhf_cli.models import streamed_forward
from rlhf_cli.models.attach_adapters import attach_adapters
from rlhf_cli.models.base_model import BaseOptions, allowed_reward_mismatch, load_base_model
from rlhf_cli.models.config import AdapterConfig, LoadConfig, ModelConfig
from rlhf_cli.models.load import LoadInputs, load_policy, load_reward_model
from rlhf_cli.models.local_base import load_with_adapters, merge_adapters, rounded
from rlhf_cli.models.quantize import set_eval_mode
from rlhf_cli.models.resolve import resolve_model
from rlhf_cli.models.stored_tensor import StoredTensor, read
from rlhf_cli.models.streamed_forward import streamed
from rlhf_cli.models.weight_files import save_weights

PROMPT = torch.arange(3, 20)[None]
CASES = {
    "lora": ("llama", {"kind": "lora"}),
    "dora": ("qwen3", {"kind": "dora"}),
    "rslora": ("gpt2", {"kind": "rslora"}),
    "tied": ("llama-tied", {"kind": "lora"}),
    "output-layer": ("llama", {"kind": "lora", "targets": ["q_proj", "lm_head"]}),
    "whole-layers": ("llama", {"kind": "lora", "modules_to_save": ["norm", "embed_tokens"]}),
    "experts": ("qwen3_moe", {"kind": "lora"}),
    "parallel": ("gpt_neox", {"kind": "lora"}),
}


def adapter_of(load_role, base, folder, tokenizer, tmp_path, new_tokens=(), **adapter):
    """Save an adapter with random values, on a base or on the adapters in a folder."""
    cfg = LoadConfig(model=ModelConfig(path=str(base)), adapter=AdapterConfig(**adapter))
    ctx = RunContext(torch.device("cpu"), torch.float32, 0, tmp_path)
    wrapper = load_role(cfg, LoadInputs(tokenizer, ctx, new_tokens=new_tokens))
    torch.manual_seed(len(str(folder.name)))
    for param in wrapper.parameters():
        if param.requires_grad:
            param.data.normal_(0, 0.2)
    wrapper.adapters.save(folder)
    return ModelConfig(path=str(folder))


def in_memory(cfg, source, tokenizer):
    """Base and adapters as they were loaded before: every weight in memory."""
    scores = source.kind == "reward_model"
    options = BaseOptions(
        kind=source.kind,
        adapters=source.adapters,
        allowed=allowed_reward_mismatch(source) if scores else None,
    )
    model = load_base_model(cfg, source.folder, tokenizer, options)
    adapted = attach_adapters(model, source, AdapterConfig(), 0).model
    set_eval_mode(adapted)
    return adapted


def run(model):
    with torch.no_grad(), streamed(model):
        return model(input_ids=PROMPT, use_cache=False).logits


def require_same_merge(cfg, tokenizer, tmp_path, kind="causal_lm"):
    source = replace(resolve_model(cfg), kind=kind)
    theirs, ours = in_memory(cfg, source, tokenizer), load_with_adapters(cfg, source, tokenizer)
    assert torch.equal(run(ours), run(theirs))
    with theirs.disable_adapter(), ours.disable_adapter():
        assert torch.equal(run(ours), run(theirs))
    theirs, ours = theirs.merge_and_unload(), merge_adapters(ours)
    assert all(isinstance(param, StoredTensor) for param in ours.parameters())
    expected = dict(theirs.state_dict())
    found = ours.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(read(found[name]), value), name
    assert ours.config.to_dict() == theirs.config.to_dict()
    assert torch.equal(run(ours), run(theirs))
    for model, folder in ((ours, "ours"), (theirs, "theirs")):
        save_weights(model, tmp_path / folder, torch.bfloat16)
    theirs.to(torch.bfloat16).save_pretrained(tmp_path / "plain")
    for file in (tmp_path / "plain").iterdir():
        content = file.read_bytes()
        assert (tmp_path / "ours" / file.name).read_bytes() == content, file.name
        assert (tmp_path / "theirs" / file.name).read_bytes() == content, file.name


@pytest.mark.parametrize("name", CASES)
def test_adapters_of_every_kind(saved, tokenizer, tmp_path, name):
    kind, adapter = CASES[name]
    folder = tmp_path / "adapter"
    cfg = adapter_of(load_policy, saved(kind), folder, tokenizer, tmp_path, **adapter)
    require_same_merge(cfg, tokenizer, tmp_path)


@pytest.mark.parametrize("kind", ["llama", "llama-tied"])
def test_rows_of_new_tokens(saved, tokenizer, tmp_path, kind):
    new, folder = [7, len(tokenizer)], tmp_path / "adapter"
    cfg = adapter_of(load_policy, saved(kind), folder, tokenizer, tmp_path, new, kind="lora")
    require_same_merge(cfg, tokenizer, tmp_path)


def test_stacked_adapters(saved, tokenizer, tmp_path):
    first, folder = tmp_path / "first", tmp_path / "adapter"
    adapter_of(load_policy, saved("qwen3"), first, tokenizer, tmp_path, kind="dora")
    cfg = adapter_of(load_policy, first, folder, tokenizer, tmp_path, kind="lora", start="stack")
    require_same_merge(cfg, tokenizer, tmp_path)


def test_a_reward_model_with_its_head_in_the_adapter(saved, tokenizer, tmp_path):
    folder = tmp_path / "adapter"
    cfg = adapter_of(load_reward_model, saved("llama"), folder, tokenizer, tmp_path, kind="lora")
    require_same_merge(cfg, tokenizer, tmp_path, "reward_model")


def test_rounded_weights_are_exact_again(saved, tokenizer, tmp_path):
    folder = tmp_path / "adapter"
    cfg = adapter_of(load_policy, saved("llama"), folder, tokenizer, tmp_path, kind="lora")
    merged = merge_adapters(load_with_adapters(cfg, resolve_model(cfg), tokenizer))
    exact = {name: read(param) for name, param in merged.state_dict().items()}
    with rounded(merged, torch.bfloat16):
        for name, param in merged.state_dict().items():
            assert torch.equal(read(param), exact[name].bfloat16().float())
    assert all(torch.equal(read(p), exact[name]) for name, p in merged.state_dict().items())


def test_one_layer_is_in_memory_at_a_time(saved, tokenizer, monkeypatch):
    """Beside the weights that may stay: none here."""
    monkeypatch.setattr(streamed_forward, "HELD", 0)
    folder = str(saved("llama"))
    options = BaseOptions(deferred=True)
    model = load_base_model(ModelConfig(path=folder), folder, tokenizer, options)
    largest = 0

    def measure(*_):
        nonlocal largest
        in_memory = [p for p in model.parameters() if not isinstance(p, StoredTensor)]
        largest = max(largest, sum(param.numel() for param in in_memory))

    for module in model.modules():
        module.register_forward_hook(measure)
    run(model)
    layer = sum(param.numel() for param in model.model.layers[0].parameters())
    assert largest <= max(layer, model.lm_head.weight.numel())
    assert all(isinstance(param, StoredTensor) for param in model.parameters())
