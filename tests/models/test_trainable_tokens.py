"""New tokens beside an adapter: a few rows are trained, and the base stays as it is."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import GPTJConfig, GPTJForCausalLM, LlamaForSequenceClassification

from rlhf_cli.errors import ModelError
from rlhf_cli.models.attach_adapters import attach_adapters
from rlhf_cli.models.config import AdapterConfig
from rlhf_cli.models.lora_config import build_lora_config
from rlhf_cli.models.resolve import ModelSource
from rlhf_cli.models.vocabulary import fit_vocabulary
from rlhf_cli.train.config import TrainConfig
from rlhf_cli.train.optim import MasterAdamW
from tests.helpers import random_rows, tiny_llama, tokenizer_of
from tests.models.test_adapters import (
    LORA,
    disturb,
    gradients,
    policy_with,
    require_gradients_of_full_logits,
    saved,
)

NEW, WIDTH = (3, 5), 32
BOTH = pytest.mark.parametrize("tied", [True, False])
ROWS = random_rows([30, 40])


def weights_of(policy):
    """The rows of the base that are not trained, by name."""
    return {n: p.detach().clone() for n, p in policy.named_parameters() if not p.requires_grad}


def full_logits(model, row):
    model.set_attn_implementation("sdpa")
    return model(input_ids=row, use_cache=False).logits


@BOTH
def test_what_is_trained_is_the_matrices_and_a_row_of_each_new_token(tied):
    policy = policy_with(LORA, new_tokens=NEW, tie_word_embeddings=tied)
    trained = {n: p.numel() for n, p in policy.named_parameters() if p.requires_grad}
    matrices = sum(size for name, size in trained.items() if "lora_" in name)
    assert sum(trained.values()) == matrices + len(NEW) * WIDTH * (1 if tied else 2)
    before = weights_of(policy)
    start, reference = policy(ROWS).logp, policy(ROWS, role="reference").logp
    assert torch.equal(start, reference)
    optimizer = MasterAdamW(policy, TrainConfig(weight_decay=0.5), torch.float32)
    policy(ROWS).logp.sum().backward()
    assert gradients(policy).keys() == trained.keys()
    optimizer.step(0.1)
    for name, value in weights_of(policy).items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(policy(ROWS, role="reference").logp, reference)
    assert not torch.allclose(policy(ROWS).logp, start, atol=0.1)


@BOTH
def test_rows_are_not_decayed(tied):
    """Decay would draw a new token's embedding to zero, of which it is no change."""
    policy = policy_with(LORA, new_tokens=NEW, tie_word_embeddings=tied)
    row = next(p for n, p in policy.named_parameters() if "trainable_tokens_delta" in n)
    before = row.detach().clone()
    optimizer = MasterAdamW(policy, TrainConfig(weight_decay=0.5), torch.float32)
    (0 * policy(ROWS).logp.sum()).backward()
    optimizer.step(0.1)
    assert torch.equal(row, before)


@BOTH
def test_logprobs_and_gradients_equal_those_of_the_full_logits(tied):
    policy = policy_with(LORA, new_tokens=NEW, tie_word_embeddings=tied)
    disturb(policy)
    found = require_gradients_of_full_logits(policy, random_rows([50]))
    assert sum("trainable_tokens_delta" in name for name in found) == (1 if tied else 2)


@BOTH
def test_plain_peft_says_the_same_of_what_is_saved_and_of_what_is_merged(tied, tmp_path):
    policy = policy_with(LORA, new_tokens=NEW, tie_word_embeddings=tied)
    disturb(policy)
    folder = saved(policy, tmp_path / "model")
    held = load_file(folder / "adapter_model.safetensors")
    rows = {key: value for key, value in held.items() if "lora_" not in key}
    assert {tuple(value.shape) for value in rows.values()} == {(len(NEW), WIDTH)}
    row = random_rows([40]).tokens[None]
    logits = full_logits(policy.model, row)
    plain = PeftModel.from_pretrained(tiny_llama(tie_word_embeddings=tied), folder)
    assert torch.equal(plain(input_ids=row).logits, logits)
    assert_close(plain.merge_and_unload()(input_ids=row).logits, logits, rtol=1e-4, atol=1e-4)
    again = policy_with(AdapterConfig(), ModelSource("x", (folder,)), tie_word_embeddings=tied)
    assert torch.equal(full_logits(again.model, row), logits)
    merged = again.model.merge_and_unload()
    assert_close(merged(input_ids=row).logits, logits, rtol=1e-4, atol=1e-4)


@BOTH
@pytest.mark.parametrize("start", ["continue", "stack"])
def test_a_second_stage_keeps_the_rows_and_adds_its_own(tied, start, tmp_path):
    first = policy_with(LORA, new_tokens=NEW, tie_word_embeddings=tied)
    disturb(first)
    below = ModelSource("x", (saved(first, tmp_path / "model"),))
    adapter = AdapterConfig(kind="lora", rank=4, start=start)
    second = policy_with(adapter, below, new_tokens=(7,), tie_word_embeddings=tied)
    assert torch.equal(second(ROWS).logp, first(ROWS).logp)
    trained = [p for n, p in second.named_parameters() if p.requires_grad and "tokens_delta" in n]
    assert {len(p) for p in trained} == {3 if start == "continue" else 1}
    disturb(second, seed=2)
    if start == "stack":
        assert torch.equal(second(ROWS, role="reference").logp, first(ROWS).logp)
    folder = saved(second, tmp_path / "second")
    stacked = sorted(path.parent for path in folder.glob("stacked_*/adapter_config.json"))
    third = policy_with(
        AdapterConfig(), ModelSource("x", (*stacked, folder)), tie_word_embeddings=tied
    )
    assert torch.equal(third(ROWS).logp, second(ROWS).logp)


@BOTH
def test_an_adapter_without_rows_stands_on_one_that_has_them(tied, tmp_path):
    first = policy_with(LORA, new_tokens=NEW, tie_word_embeddings=tied)
    disturb(first)
    below = ModelSource("x", (saved(first, tmp_path / "model"),))
    adapter = AdapterConfig(kind="lora", rank=4, start="stack")
    second = policy_with(adapter, below, tie_word_embeddings=tied)
    assert all("lora_" in n for n, p in second.named_parameters() if p.requires_grad)
    disturb(second, seed=2)
    assert torch.equal(second(ROWS, role="reference").logp, first(ROWS).logp)
    folder = saved(second, tmp_path / "second")
    both = ModelSource("x", (folder / "stacked_0", folder))
    third = policy_with(AdapterConfig(), both, tie_word_embeddings=tied)
    assert torch.equal(third(ROWS).logp, second(ROWS).logp)


@BOTH
def test_a_reward_model_begins_with_the_rows_of_a_language_models_adapter(tied, tmp_path):
    first = policy_with(LORA, new_tokens=NEW, tie_word_embeddings=tied)
    disturb(first)
    folder = saved(first, tmp_path / "model")
    plain = tiny_llama(tie_word_embeddings=tied)
    scorer = LlamaForSequenceClassification(plain.config)
    scorer.model.load_state_dict(plain.model.state_dict())
    adapted = attach_adapters(scorer, ModelSource("x", (folder,)), AdapterConfig(), 0).model
    row = ROWS.tokens[None, :30]
    first.model.set_attn_implementation("sdpa")
    expected = first.model.get_base_model().model(input_ids=row).last_hidden_state
    assert torch.equal(adapted.get_base_model().model(input_ids=row).last_hidden_state, expected)


@BOTH
def test_a_twin_has_rows_of_its_own(tied):
    policy = policy_with(LORA, new_tokens=NEW, tie_word_embeddings=tied)
    disturb(policy)
    before = policy(ROWS).logp
    policy.adapters.clone_adapter("start", trained=False)
    assert torch.equal(policy(ROWS, role="start").logp, before)
    disturb(policy, seed=2)
    assert torch.equal(policy(ROWS, role="start").logp, before)
    assert not torch.allclose(policy(ROWS).logp, before, atol=0.1)


def test_a_layer_that_is_trained_whole_gets_no_rows_beside():
    model = tiny_llama(tie_word_embeddings=False)
    whole = AdapterConfig(kind="lora", targets=["q_proj"], modules_to_save=["lm_head"])
    indices = build_lora_config(model, whole, NEW).trainable_token_indices
    assert indices == {"model.embed_tokens": [3, 5]}
    matrices = AdapterConfig(kind="lora", targets=["q_proj", "lm_head"])
    assert build_lora_config(model, matrices, NEW).trainable_token_indices == indices


def test_matrices_on_an_output_layer_with_rows_from_below_are_refused(tmp_path):
    first = policy_with(LORA, new_tokens=NEW, tie_word_embeddings=False)
    below = ModelSource("x", (saved(first, tmp_path / "model"),))
    adapter = AdapterConfig(kind="lora", targets=["lm_head", "q_proj"], start="stack")
    with pytest.raises(ModelError, match=r"got lm_head, .* rows of single tokens"):
        policy_with(adapter, below, tie_word_embeddings=False)


def test_an_output_layer_with_a_bias_is_refused():
    shape = {"n_embd": 16, "n_head": 2, "n_layer": 1, "rotary_dim": 4, "vocab_size": 20}
    model = GPTJForCausalLM(GPTJConfig(**shape))
    with pytest.raises(ModelError, match=r"a GPTJForCausalLM has a bias, .* Try adapter=none"):
        attach_adapters(model, ModelSource("x"), LORA, 0, (3,))


def resized_adapter(folder, rows, tied, tokens=None):
    """What PEFT leaves where a script resized the vocabulary first; and the model it was."""
    model = tiny_llama(tie_word_embeddings=tied)
    model.resize_token_embeddings(rows, mean_resizing=False)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj"],
        task_type="CAUSAL_LM",
        init_lora_weights=False,
        trainable_token_indices=tokens,
    )
    wrapped = get_peft_model(model, config)
    wrapped.save_pretrained(folder, save_embedding_layers=True)
    return wrapped


@BOTH
@pytest.mark.parametrize(("rows", "tokens"), [(99, None), (99, [97, 98]), (90, None)])
def test_an_adapter_with_resized_embeddings_stands_on_its_base(tied, rows, tokens, tmp_path):
    """Longer ones, with rows of single tokens beside them, and a vocabulary that was cut."""
    wrapped = resized_adapter(tmp_path / "first", rows, tied, tokens)
    row = random_rows([30], vocab=min(rows, 97)).tokens[None]
    expected = wrapped(input_ids=row).logits
    folder = tmp_path / "first"
    for target in ("second", "third"):  # what is trained on and saved is as whole
        base = tiny_llama(tie_word_embeddings=tied)
        fit_vocabulary(base, tokenizer_of(range(rows)), adapters=[folder])
        adapters = attach_adapters(base, ModelSource("x", (folder,)), AdapterConfig(), 0)
        logits = full_logits(adapters.model, row)
        assert_close(logits[..., :rows], expected, rtol=0, atol=0)
        adapters.save(tmp_path / target)
        folder = tmp_path / target


def test_whole_embeddings_take_no_rows_of_new_tokens_beside_them(tmp_path):
    resized_adapter(tmp_path, 99, False)
    base = tiny_llama(tie_word_embeddings=False)
    fit_vocabulary(base, tokenizer_of(range(100)), (99,), [tmp_path])
    with pytest.raises(ModelError, match=r"has whole embeddings .* Try adapter.start=merge"):
        attach_adapters(base, ModelSource("x", (tmp_path,)), AdapterConfig(), 0, (99,))
