"""Ranks that compute the tokens of the same rows, beside one that computes all.

fp32 sums in another order differ by about 1e-6 of the largest value; a wrong head, row or token
changes values by far more than the bound.
"""

import copy
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
)

from rlhf_cli.context import RunContext
from rlhf_cli.distributed.ranks import SINGLE_PROCESS, Ranks, divide_ranks
from rlhf_cli.errors import ConfigError, ModelError
from rlhf_cli.kernels.registry import choose
from rlhf_cli.models.attention import RowLayout, per_row_attention, require_attention
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.context_parallel import ContextChunk, require_exact_positions
from rlhf_cli.models.load import disable_dropout, enable_activation_checkpointing
from rlhf_cli.models.parameters import frozen_copy
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.probes import probe, probe_pair
from rlhf_cli.models.reward_model import RewardModel
from rlhf_cli.models.value_model import SharedValueModel
from tests.helpers import random_rows, rows_of, tiny_llama
from tests.models.test_experts import mixture
from tests.thread_ranks import on_ranks

CPU = torch.device("cpu")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
ROWS = RowLayout((9, 4, 6, 5, 20, 3, 3), (-1, 0, 0, -1, -1, 4, 4))
SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
MODELS = {
    "llama": LlamaConfig(**SHAPE),
    "6 heads, 3 keys": LlamaConfig(
        **SHAPE | {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3}
    ),
    "mistral, sliding window": MistralConfig(**SHAPE, sliding_window=4),
    "gemma2, soft caps": Gemma2Config(
        **SHAPE,
        head_dim=8,
        sliding_window=4,
        final_logit_softcapping=5.0,
        attn_logit_softcapping=3.0,
    ),
    "gpt2": GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2),
}


def policy_of(model, context=SINGLE_PROCESS):
    policy = Policy(copy.deepcopy(model).train(), choose("none", CPU)[0], flat=True)
    policy.context = context
    return policy


def model_of(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    disable_dropout(model)
    return model


def pass_of(wrapper, outputs):
    """Outputs, and the gradients of a sum in which each output weighs differently."""
    (outputs * torch.arange(1.0, len(outputs) + 1)).sum().backward()
    grads = {name: p.grad for name, p in wrapper.named_parameters() if p.grad is not None}
    return outputs.detach(), grads


def assert_divided(whole, parts):
    """Every rank has the outputs of one process; their gradients add up to its."""
    outputs, gradients = whole
    for own, _ in parts:
        assert_close(own, outputs, **CLOSE)
        assert torch.equal(own, parts[0][0]), "a loss must be the same number on all ranks"
    for name, expected in gradients.items():
        total = sum(own[name] for _, own in parts if name in own)
        scale = max(1.0, float(expected.abs().max()))
        assert_close(total / scale, expected / scale, msg=f"gradient of {name}", **CLOSE)


@pytest.mark.parametrize(
    ("heads", "keys", "size"),
    [(4, 4, 2), (4, 2, 4), (8, 2, 4), (12, 3, 2), (9, 3, 3), (9, 3, 2), (3, 1, 2), (2, 2, 4)],
)
def test_attention_is_that_of_whole_rows(heads, keys, size):
    """Keys are shared, repeated or filled up; shared prefixes, windows and soft caps as ever."""
    tokens = sum(ROWS.lengths)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, h, tokens, 8, generator=generator) for h in (heads, keys, keys)]
    weights = torch.randn(1, tokens, heads, 8, generator=generator)

    def attend(leaves, layout, options):
        return per_row_attention(torch.nn.Identity(), *leaves, None, **options, row_layout=layout)

    for options in ({}, {"sliding_window": 5}, {"softcap": 2.0, "scaling": 0.5}):
        leaves = [one.clone().requires_grad_() for one in inputs]
        expected, _ = attend(leaves, ROWS, options)
        (expected * weights).sum().backward()

        def divided(ranks, options=options):
            chunk = ContextChunk(ranks, tokens)
            filled = [torch.nn.functional.pad(one, (0, 0, 0, chunk.size)) for one in inputs]
            start = ranks.rank * chunk.size
            own = [one[:, :, start : start + chunk.size].requires_grad_() for one in filled]
            found, _ = attend(own, replace(ROWS, chunk=chunk), options)
            used = torch.nn.functional.pad(weights, (0, 0, 0, 0, 0, chunk.size))
            (found * used[:, start : start + chunk.size]).sum().backward()
            return found.detach(), [one.grad for one in own]

        parts = on_ranks(size, divided)
        found = torch.cat([part for part, _ in parts], dim=1)[:, :tokens]
        assert_close(found, expected, **CLOSE)
        for number, leaf in enumerate(leaves):
            whole = torch.cat([grads[number] for _, grads in parts], dim=2)[:, :, :tokens]
            assert_close(whole, leaf.grad, **CLOSE)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("name", MODELS)
def test_log_probs_and_gradients_are_those_of_one_process(name, size):
    """21 and 43 tokens, which neither 2 nor 4 divides; the second batch has a shared prefix."""
    model = model_of(MODELS[name])
    for rows in (random_rows([5, 9, 7]), probe_pair(97, CPU)):
        whole = policy_of(model)
        expected = pass_of(whole, whole(rows).logp)

        def divided(ranks, rows=rows):
            policy = policy_of(model, ranks)
            return pass_of(policy, policy(rows).logp)

        assert_divided(expected, on_ranks(size, divided))


@pytest.mark.parametrize(
    "rows",
    [
        random_rows([2]),
        rows_of([5, 6, 7, 8, 9, 10, 11], scored=[[5]]),
        rows_of([5, 6, 7, 8, 9, 10, 11], scored=[[0, 1]]),
        rows_of([5, 6], [7, 8, 9], scored=[[], []]),
    ],
    ids=["fewer tokens than ranks", "scored at the end", "scored at the start", "nothing scored"],
)
def test_a_rank_may_have_no_token_or_no_target(rows):
    model = tiny_llama()
    whole = policy_of(model)
    expected = pass_of(whole, whole(rows).logp)

    def divided(ranks):
        policy = policy_of(model, ranks)
        return pass_of(policy, policy(rows).logp)

    assert_divided(expected, on_ranks(4, divided))


def test_recomputed_activations_give_the_same_gradients():
    rows, model = random_rows([5, 40, 7]), tiny_llama()
    whole = policy_of(model)
    expected = pass_of(whole, whole(rows).logp)

    def divided(ranks):
        policy = policy_of(model, ranks)
        enable_activation_checkpointing(policy)
        return pass_of(policy, policy(rows).logp)

    assert_divided(expected, on_ranks(2, divided))


def test_everything_that_is_wanted_of_a_token_is_gathered():
    rows, model, wanted = random_rows([5, 9, 7]), tiny_llama(), ("entropy", "lse", "sum_sq", "top1")
    expected = policy_of(model)(rows, want=wanted)

    def divided(ranks):
        policy = policy_of(model, ranks)
        return policy(rows, want=wanted), policy.hidden_states(rows, rows.scored[::3])

    for found, hidden in on_ranks(2, divided):
        for name in wanted:
            assert_close(getattr(found, name), getattr(expected, name), **CLOSE)
        assert_close(hidden, policy_of(model).hidden_states(rows, rows.scored[::3]), **CLOSE)


def test_scores_and_their_gradients_are_those_of_one_process():
    """The last tokens of the rows lie on different ranks."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, num_labels=1)
    model = AutoModelForSequenceClassification.from_config(config)
    rows = random_rows([5, 9, 7, 2])

    def reward_model(context):
        wrapper = RewardModel(copy.deepcopy(model).train(), choose("none", CPU)[0], flat=True)
        wrapper.context = context
        return wrapper

    whole = reward_model(SINGLE_PROCESS)
    expected = pass_of(whole, whole(rows))

    def divided(ranks):
        wrapper = reward_model(ranks)
        return pass_of(wrapper, wrapper(rows))

    assert_divided(expected, on_ranks(2, divided))


def test_the_routing_of_a_mixture_is_that_of_one_process():
    rows, model = random_rows([5, 9, 7]), mixture()

    def share(policy):
        out = policy(rows, want=("logp", "router"))
        return torch.cat([out.logp, out.router.share.flatten(), out.router.chosen.flatten()])

    whole = policy_of(model)
    expected = pass_of(whole, share(whole))

    def divided(ranks):
        policy = policy_of(model, ranks)
        return pass_of(policy, share(policy))

    assert_divided(expected, on_ranks(2, divided))


def test_a_frozen_copy_has_the_same_context_group():
    ranks = Ranks(0, 2)
    policy = policy_of(tiny_llama(), ranks)
    assert frozen_copy(policy, torch.float32).context is ranks


def test_the_probe_runs_on_chunks(monkeypatch):
    model = tiny_llama()

    def probed(ranks):
        policy = policy_of(model, ranks)
        probe(policy, may_fall_back=False)
        return policy.flat, policy.shares_prefixes

    assert on_ranks(2, probed) == [(True, True)] * 2
    real = ContextChunk.to_tokens
    monkeypatch.setattr(ContextChunk, "to_tokens", lambda *a: real(*a).roll(1, dims=2))
    with pytest.raises(ModelError, match=r"cannot be trained\. Try launch\.context_parallel=1"):
        on_ranks(2, probed)


def test_values_of_a_policy_are_refused():
    policy = policy_of(tiny_llama())
    policy.value_model = SharedValueModel(32)

    def values(ranks):
        own = policy_of(tiny_llama(), ranks)
        own.value_model = SharedValueModel(32)
        with pytest.raises(ValueError, match="not divided over a context group"):
            own(random_rows([5]), want=("logp", "value"))

    on_ranks(2, values)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_depend_on_the_longest_row_are_refused(kind):
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}
    if kind == "longrope":
        factors = {"long_factor": [1.0] * 4, "short_factor": [1.0] * 4}
        rope |= {**factors, "original_max_position_embeddings": 64}
    model = tiny_llama(rope_parameters=rope)
    require_exact_positions(model, SINGLE_PROCESS)
    with pytest.raises(ModelError, match=rf"LlamaForCausalLM \(rope_type {kind}\) depend on"):
        require_exact_positions(model, Ranks(0, 2))
    require_exact_positions(tiny_llama(), Ranks(0, 2))


def test_an_encoder_is_refused(tmp_path):
    divided = Ranks(0, 2, context_ranks=Ranks(0, 2))
    ctx = RunContext(CPU, torch.float32, 0, tmp_path, divided)
    with pytest.raises(ModelError, match=r"launch\.context_parallel: got 2; bert is an encoder"):
        require_attention(ModelConfig(path="bert"), ctx, flat=False)
    require_attention(ModelConfig(path="llama"), ctx, flat=True)


def test_groups_must_divide_the_processes():
    assert divide_ranks(SINGLE_PROCESS, 1) is SINGLE_PROCESS
    with pytest.raises(ConfigError, match="got 2 with 3 processes; need a divisor"):
        divide_ranks(Ranks(0, 3), 2)
