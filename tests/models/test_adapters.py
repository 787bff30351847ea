import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from rlhf_cli.errors import ModelError
from rlhf_cli.kernels.registry import choose
from rlhf_cli.models.attach_adapters import attach_adapters
from rlhf_cli.models.config import AdapterConfig, ModelConfig
from rlhf_cli.models.load import enable_activation_checkpointing
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.resolve import ModelSource, resolve_model, weights_fingerprint
from tests.helpers import random_rows, tiny_llama

LORA = AdapterConfig(kind="lora", rank=4)
CPU = torch.device("cpu")


def policy_with(adapter, source=None, *, new_tokens=(), flat=True, **shape):
    model = tiny_llama(**shape)
    adapters = attach_adapters(model, source or ModelSource("somewhere"), adapter, 0, new_tokens)
    return Policy(adapters.model.train(), choose("auto", CPU)[0], flat=flat, adapters=adapters)


def disturb(policy, seed=1):
    """As if the adapter had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for param in policy.parameters():
        if param.requires_grad:
            param.data += 0.1 * torch.randn(param.shape, generator=generator)


def saved(policy, folder, base=None):
    """The adapter in a folder, as a run leaves it."""
    policy.adapters.source = ModelSource(str(base or folder.parent))
    policy.adapters.save(folder)
    return folder


def gradients(policy):
    return {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["lora", "dora", "rslora"])
def test_a_new_adapter_says_what_its_base_says_until_it_is_trained(kind):
    policy = policy_with(AdapterConfig(kind=kind, rank=4))
    rows = random_rows([7, 12])
    reference = policy(rows, role="reference").logp
    assert torch.equal(policy(rows).logp, reference) or kind == "dora"  # dora divides by a norm
    assert_close(policy(rows).logp, reference, rtol=1e-6, atol=1e-6)
    disturb(policy)
    assert not torch.allclose(policy(rows).logp, reference, atol=1e-3)
    assert torch.equal(policy(rows, role="reference").logp, reference)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_reference_pass_between_forward_and_backward_changes_no_gradient(recompute):
    rows, found = random_rows([9, 5]), []
    for between in (False, True):
        policy = policy_with(LORA)
        disturb(policy)
        if recompute:
            enable_activation_checkpointing(policy)
        logp = policy(rows).logp
        if between:
            policy(rows, role="reference")
        logp.sum().backward()
        found.append(gradients(policy))
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) == 2 * 14  # two matrices on each of seven layers in two blocks
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


def test_only_the_adapter_is_trained():
    names = [n for n, p in policy_with(LORA).named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in name for name in names)


def require_gradients_of_full_logits(policy, row):
    """Compare log-probs and gradients of a row with those of the full logits; gives the names."""
    ours = policy(row).logp
    ours.sum().backward()
    own = gradients(policy)
    policy.zero_grad()
    policy.model.set_attn_implementation("sdpa")
    logits = policy.model(input_ids=row.tokens[None], use_cache=False).logits[0]
    plain = logits.log_softmax(-1)[:-1].gather(1, row.tokens[1:, None]).squeeze(1)[row.scored]
    plain.sum().backward()
    assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    found = gradients(policy)
    assert found.keys() == own.keys()
    for name, gradient in found.items():
        assert_close(own[name], gradient, rtol=1e-4, atol=1e-5)
    return list(found)


def test_an_adapter_on_the_output_layer_counts():
    """Log-probs and gradients equal those of the full logits, which PEFT computes itself."""
    adapter = AdapterConfig(kind="lora", rank=4, targets=["lm_head", "q_proj"])
    policy = policy_with(adapter, tie_word_embeddings=False)
    disturb(policy)
    found = require_gradients_of_full_logits(policy, random_rows([12]))
    assert any("lm_head.lora_B" in name for name in found)


WHOLE = AdapterConfig(
    kind="lora", rank=4, targets=["q_proj"], modules_to_save=["embed_tokens", "norm", "lm_head"]
)


def test_layers_trained_whole_count_and_the_reference_has_those_of_the_base():
    policy = policy_with(WHOLE, tie_word_embeddings=False)
    row = random_rows([12])
    before = policy(row).logp
    assert torch.equal(before, policy(row, role="reference").logp)
    disturb(policy)
    assert torch.equal(before, policy(row, role="reference").logp)
    found = require_gradients_of_full_logits(policy, row)
    assert sum("modules_to_save" in name for name in found) == 3


def test_layers_trained_whole_are_saved_with_the_adapter_merged_and_read_by_plain_peft(tmp_path):
    policy = policy_with(WHOLE, tie_word_embeddings=False)
    disturb(policy)
    rows = random_rows([7, 12])
    folder = saved(policy, tmp_path / "model")
    again = policy_with(AdapterConfig(), ModelSource("x", (folder,)), tie_word_embeddings=False)
    assert torch.equal(again(rows).logp, policy(rows).logp)
    row = rows.tokens[None, :7]
    policy.model.set_attn_implementation("sdpa")
    logits = policy.model(input_ids=row, use_cache=False).logits
    plain = PeftModel.from_pretrained(tiny_llama(tie_word_embeddings=False), folder)
    assert_close(plain(input_ids=row).logits, logits)
    assert_close(plain.merge_and_unload()(input_ids=row).logits, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["lm_head"], "adapter.modules_to_save: got lm_head; input embeddings and output layer"),
        (["embed_token"], r"got embed_token; .* Try adapter.modules_to_save=\[embed_tokens\]"),
    ],
)
def test_layers_that_cannot_be_trained_whole_are_refused(names, line):
    with pytest.raises(ModelError, match=line):
        policy_with(AdapterConfig(kind="lora", modules_to_save=names))


def test_a_saved_adapter_comes_back_and_is_trained_on(tmp_path):
    first = policy_with(LORA)
    disturb(first)
    rows = random_rows([7, 12])
    folder = saved(first, tmp_path / "model")
    again = policy_with(AdapterConfig(), ModelSource("x", (folder,)))
    assert torch.equal(again(rows).logp, first(rows).logp)
    assert again.adapters.roles["policy"] == ["default"]
    assert any(p.requires_grad for p in again.parameters())


def test_a_stacked_adapter_is_frozen_and_is_the_reference(tmp_path):
    first = policy_with(LORA)
    disturb(first)
    rows = random_rows([7, 12])
    expected = first(rows).logp
    below = ModelSource("x", (saved(first, tmp_path / "model"),))
    second = policy_with(AdapterConfig(kind="rslora", rank=2, start="stack"), below)
    assert torch.equal(second(rows).logp, expected)
    disturb(second)
    assert torch.equal(second(rows, role="reference").logp, expected)
    trained = [n for n, p in second.named_parameters() if p.requires_grad]
    assert all(".default." in name for name in trained)
    both = saved(second, tmp_path / "two")
    assert (both / "stacked_0" / "adapter_config.json").is_file()
    cfg = ModelConfig(path=str(both), base=str(base_folder(tmp_path)))
    third = policy_with(AdapterConfig(), resolve_model(cfg))
    assert torch.equal(third(rows).logp, second(rows).logp)


def test_layers_that_have_an_adapter_can_be_named_for_a_second_one(tmp_path):
    named = AdapterConfig(kind="lora", rank=4, targets=["q_proj"])
    below = ModelSource("x", (saved(policy_with(named), tmp_path / "model"),))
    again = AdapterConfig(kind="lora", rank=2, targets=["q_proj", "v_proj"], start="stack")
    trained = [n for n, p in policy_with(again, below).named_parameters() if p.requires_grad]
    assert {n.split(".lora_")[0].rpartition(".")[2] for n in trained} == {"q_proj", "v_proj"}
    wrong = AdapterConfig(kind="lora", targets=["q_prj"], start="stack")
    with pytest.raises(ModelError, match="the model has down_proj, gate_proj, k_proj, lm_head"):
        policy_with(wrong, below)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"targets": ["q_prj"]}, "got q_prj; no linear layer has that name.*Try.*q_proj"),
        ({"targets": "qkv"}, "got qkv; no linear layer has that name"),
        ({"targets": ["lm_head"]}, "shares its weights with the input embeddings"),
    ],
)
def test_targets_that_cannot_be_are_refused(adapter, message):
    with pytest.raises(ModelError, match=message):
        policy_with(AdapterConfig(kind="lora", **adapter), tie_word_embeddings=True)


@pytest.mark.parametrize("settings", [{"dropout": 0.1}, {"kind": "dora"}])
def test_an_output_layer_takes_plain_adapters_only(settings):
    adapter = AdapterConfig(**{"kind": "lora", "targets": ["lm_head"], **settings})
    with pytest.raises(ModelError, match=r"lora or rslora without adapter.dropout only"):
        policy_with(adapter, tie_word_embeddings=False)


def test_an_adapter_of_other_shapes_is_refused(tmp_path):
    folder = saved(policy_with(LORA), tmp_path / "model")
    with pytest.raises(ModelError, match=r"made for another base: .* is .* and this base needs"):
        policy_with(AdapterConfig(), ModelSource("x", (folder,)), hidden_size=16)
    with pytest.raises(ModelError, match=r"made for another base: .* needs no such"):
        policy_with(AdapterConfig(), ModelSource("x", (folder,)), num_hidden_layers=1)


def test_a_damaged_or_pickled_adapter_is_refused(tmp_path):
    folder = saved(policy_with(LORA), tmp_path / "model")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be put on this base"):
        policy_with(AdapterConfig(), ModelSource("x", (folder,)))
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"A pickle .* is not read"):
        policy_with(AdapterConfig(), ModelSource("x", (folder,)))


def test_another_shape_than_that_of_the_adapter_is_refused(tmp_path):
    source = ModelSource("x", (saved(policy_with(LORA), tmp_path / "model"),))
    with pytest.raises(ModelError, match=r"adapter.rank: got 8, but .* has 4.*start=stack"):
        policy_with(AdapterConfig(kind="lora", rank=8), source)
    with pytest.raises(ModelError, match=r"adapter.kind: got dora, but .* has lora"):
        policy_with(AdapterConfig(kind="dora", rank=4), source)
    with pytest.raises(ModelError, match=r"adapter.alpha: got 8.0, but .* has 32.0"):
        policy_with(AdapterConfig(kind="lora", rank=4, alpha=8.0), source)
    with pytest.raises(ModelError, match=r"adapter.targets: given, but"):
        policy_with(AdapterConfig(kind="lora", rank=4, targets=["q_proj"]), source)


def base_folder(tmp_path):
    folder = tmp_path / "weights"
    tiny_llama().save_pretrained(folder)
    return folder


def test_a_base_that_moved_can_be_named(tmp_path):
    base = base_folder(tmp_path)
    folder = saved(policy_with(LORA), tmp_path / "run" / "model", base)
    assert resolve_model(ModelConfig(path=str(folder))).base == str(base)
    moved = base.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"whose base .*weights is not there.*model.base="):
        resolve_model(ModelConfig(path=str(folder)))
    assert resolve_model(ModelConfig(path=str(folder), base=str(moved))).base == str(moved)


def test_other_weights_in_the_place_of_the_base_are_refused(tmp_path):
    base = base_folder(tmp_path)
    folder = saved(policy_with(LORA), tmp_path / "run" / "model", base)
    facts = {"base_fingerprint": weights_fingerprint(base)}
    (tmp_path / "run" / "artifact.json").write_text(json.dumps(facts))
    assert resolve_model(ModelConfig(path=str(folder))).adapters == (folder,)
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] += 1.0
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="is an adapter of another base"):
        resolve_model(ModelConfig(path=str(folder)))
    shutil.rmtree(base)
