"""`generate` compared with transformers' generate, and what must not change a response."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GenerationConfig,
    MambaConfig,
    Qwen2MoeConfig,
)

from rlhf_cli.errors import ConfigError, DataError, NonFinite
from rlhf_cli.kernels.registry import choose
from rlhf_cli.models.load import enable_activation_checkpointing
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.vocabulary import find_support
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.engine import generate
from tests.helpers import random_rows, rows_of, tiny_llama, tokenizer_of
from tests.models.test_policy import ARCHITECTURES, SHAPE

TOKENIZER = tokenizer_of(range(97))
GREEDY = SamplingConfig(max_new_tokens=16, temperature=0)
LENGTHS = [5, 1, 17, 9, 30, 2, 8, 8, 12]


def random_prompts(lengths, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 97, (n,), generator=generator).tolist() for n in lengths]


PROMPTS = random_prompts(LENGTHS)


def make(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def plain_greedy(model, prompts, count=16):
    """transformers' generate, all prompts in one padded batch."""
    longest = max(map(len, prompts))
    tokens = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    config = GenerationConfig(
        do_sample=False, max_new_tokens=count, eos_token_id=[2], pad_token_id=0
    )
    output = model.generate(input_ids=tokens, attention_mask=mask, generation_config=config)
    rows = output[:, longest:].tolist()
    return [row[: row.index(2) + 1] if 2 in row else row for row in rows]


def token_ids(responses):
    return [response.token_ids for response in responses]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_equals_transformers_generate(name, capsys):
    model = make(ARCHITECTURES[name])
    expected = plain_greedy(model, PROMPTS)
    alone = [plain_greedy(model, [prompt])[0] for prompt in PROMPTS]
    for slots in (1, 4, 64):
        got = generate(model, TOKENIZER, PROMPTS, GREEDY, batch_size=slots)
        assert token_ids(got) == expected == alone
    assert [one.finished for one in got] == [row[-1] == 2 for row in expected]
    assert (
        capsys.readouterr().err.count("rollout: continuous batching equals") == 1
    )  # once per model


def test_some_greedy_responses_end_early_and_some_never():
    """Else the test above would show nothing about responses that end."""
    got = generate(make(ARCHITECTURES["mistral, sliding window"]), TOKENIZER, PROMPTS, GREEDY)
    assert {True, False} == {one.finished for one in got}
    assert max(map(len, token_ids(got))) == 16


def test_bf16_supports_continuous_batching(capsys):
    model = make(ARCHITECTURES["gemma2"]).bfloat16()
    rollout = generate(model, TOKENIZER, PROMPTS, GREEDY, batch_size=4)
    assert "equals" in capsys.readouterr().err
    assert all(token_ids(rollout))


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2),
        MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, eos_token_id=2),
    ],
    ids=["bloom", "mamba"],
)
def test_unsupported_architectures_use_transformers_generate(config, capsys):
    model = make(config)
    got = generate(model, TOKENIZER, PROMPTS[3:6], GREEDY, batch_size=2)
    assert (
        "rollout: transformers' generate; continuous batching does not work"
        in capsys.readouterr().err
    )
    assert token_ids(got) == [plain_greedy(model, [prompt])[0] for prompt in PROMPTS[3:6]]


def test_a_window_that_attention_ignores_is_found(capsys):
    """Qwen2-MoE has it only in the mask; it is wider than the probe's responses."""
    shape = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    model = make(
        Qwen2MoeConfig(
            **SHAPE,
            **shape,
            shared_expert_intermediate_size=16,
            use_sliding_window=True,
            sliding_window=64,
            max_window_layers=1,
        )
    )
    got = generate(model, TOKENIZER, PROMPTS[:3], GREEDY)
    assert "log-probs differ" in capsys.readouterr().err
    assert token_ids(got) == plain_greedy(model, PROMPTS[:3])
    assert model.config.sliding_window == 64


def test_fallback_samples_are_repeatable():
    model = make(BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4))
    sampling = SamplingConfig(max_new_tokens=6, seed=3)
    first = generate(model, TOKENIZER, PROMPTS[:3], sampling, samples=2)
    assert first == generate(model, TOKENIZER, PROMPTS[:3], sampling, samples=2)
    other = SamplingConfig(max_new_tokens=6, seed=4)
    assert first != generate(model, TOKENIZER, PROMPTS[:3], other, samples=2)


SAMPLED = SamplingConfig(max_new_tokens=12, temperature=0.9, top_p=0.95, seed=5)


def test_samples_do_not_depend_on_batch_size_or_order():
    """In fp32: another batch changes probabilities by about 1e-6."""
    model = tiny_llama()
    expected = token_ids(generate(model, TOKENIZER, PROMPTS, SAMPLED, samples=3, batch_size=64))
    assert (
        token_ids(generate(model, TOKENIZER, PROMPTS, SAMPLED, samples=3, batch_size=5)) == expected
    )
    order = [4, 0, 8, 2]
    some = generate(
        model,
        TOKENIZER,
        [PROMPTS[i] for i in order],
        SAMPLED,
        samples=3,
        prompt_numbers=order,
        batch_size=2,
    )
    assert token_ids(some) == [row for i in order for row in expected[3 * i : 3 * i + 3]]


def test_samples_of_a_prompt_differ_and_so_do_seeds():
    model = tiny_llama()
    first = token_ids(generate(model, TOKENIZER, PROMPTS[:1], SAMPLED, samples=4))
    assert len({tuple(row) for row in first}) == 4
    other = SamplingConfig(max_new_tokens=12, temperature=0.9, top_p=0.95, seed=6)
    assert first != token_ids(generate(model, TOKENIZER, PROMPTS[:1], other, samples=4))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_greedy_samples_of_one_prompt_are_equal(name):
    """They share the prompt's keys and values, whether they enter together or later."""
    model = make(ARCHITECTURES[name])
    expected = plain_greedy(model, PROMPTS)
    got = token_ids(generate(model, TOKENIZER, PROMPTS, GREEDY, samples=3, batch_size=4))
    assert got == [row for row in expected for _ in range(3)]


def test_a_prompt_is_computed_once_for_all_samples():
    model = tiny_llama()
    generate(model, TOKENIZER, PROMPTS[:1], GREEDY)  # the probe is over
    seen = []
    model.model.embed_tokens.register_forward_hook(lambda m, i, out: seen.append(out.shape[1]))
    sampling = SamplingConfig(max_new_tokens=3, min_new_tokens=3)
    generate(model, TOKENIZER, [PROMPTS[4]], sampling, samples=5, batch_size=2)
    assert sum(seen) == 29 + 5 * 3  # the prompt's last token is each row's own


def test_no_end_before_min_new_tokens():
    model = tiny_llama()
    model.lm_head.weight.data[2] *= 40  # ends often
    free = generate(model, TOKENIZER, PROMPTS, SamplingConfig(max_new_tokens=8, seed=1))
    assert min(map(len, token_ids(free))) < 5
    sampling = SamplingConfig(max_new_tokens=8, min_new_tokens=5, seed=1)
    held = generate(model, TOKENIZER, PROMPTS, sampling)
    assert min(map(len, token_ids(held))) >= 6  # five others, then the end token
    assert all(2 not in row[:5] for row in token_ids(held))


def test_min_new_tokens_where_nothing_ends_a_response():
    sampling = SamplingConfig(max_new_tokens=4, min_new_tokens=4, seed=1)
    got = generate(tiny_llama(), tokenizer_of(range(97), end=None), PROMPTS, sampling)
    assert {len(row) for row in token_ids(got)} == {4}


def test_a_response_that_never_ends_does_not_block_the_others():
    model = tiny_llama()
    got = generate(model, tokenizer_of(range(97), end=None), PROMPTS, GREEDY, batch_size=2)
    assert {len(row) for row in token_ids(got)} == {16}
    assert [one.finished for one in got] == [False] * len(PROMPTS)


def lora_policy():
    model = get_peft_model(
        tiny_llama(),
        LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5, init_lora_weights=False),
    )
    return Policy(model.train(), choose("auto", torch.device("cpu"))[0], flat=True)


def test_a_lora_policy_in_training_generates_as_the_merged_model():
    policy = lora_policy()
    got = token_ids(generate(policy, TOKENIZER, PROMPTS, GREEDY, batch_size=4))
    merged = policy.model.merge_and_unload().eval()
    merged.set_attn_implementation("sdpa")
    assert got == plain_greedy(merged, PROMPTS)


def test_a_policy_in_training_is_restored():
    policy = Policy(tiny_llama().train(), choose("auto", torch.device("cpu"))[0], flat=True)
    enable_activation_checkpointing(policy)
    rows = random_rows([9, 14])

    def state():
        policy.zero_grad()
        logp = policy(rows).logp
        logp.sum().backward()
        return logp.detach(), [p.grad.clone() for p in policy.parameters()]

    logp, gradients = state()
    modes = [(m.training, getattr(m, "gradient_checkpointing", None)) for m in policy.modules()]
    attention = policy.model.config._attn_implementation
    expected = plain_greedy(tiny_llama().eval(), PROMPTS)
    assert token_ids(generate(policy, TOKENIZER, PROMPTS, GREEDY, batch_size=3)) == expected
    assert all((p.grad == g).all() for p, g in zip(policy.parameters(), gradients, strict=True))
    assert policy.model.config._attn_implementation == attention
    found = [(m.training, getattr(m, "gradient_checkpointing", None)) for m in policy.modules()]
    assert found == modes
    after, again = state()
    assert torch.equal(after, logp)
    for one, other in zip(again, gradients, strict=True):
        assert_close(one, other, rtol=0, atol=0)


def test_the_first_tokens_have_the_models_probabilities():
    """Chi-square of 4,000 first tokens, against the 99.99 % bound for up to 20 cells."""
    model = tiny_llama(vocab_size=20)
    prompt = [5, 6, 7]
    sampling = SamplingConfig(max_new_tokens=1, temperature=0.7)
    got = token_ids(generate(model, TOKENIZER, [prompt], sampling, samples=4000))
    counts = torch.bincount(torch.tensor(got).flatten(), minlength=20).double()
    logits = model(input_ids=torch.tensor([prompt])).logits[0, -1].double()
    expected = 4000 * (logits / 0.7).softmax(-1).detach()
    assert float(((counts - expected) ** 2 / expected).sum()) < 51


BLOOM = BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2)
KNOWN = [*range(3, 10), *range(12, 40), 2]
"""Ids that have a token: of 97 rows, some others are between them and most after the last."""


@pytest.mark.parametrize("temperature", [0, 2.0])
@pytest.mark.parametrize("config", [ARCHITECTURES["gemma2"], BLOOM], ids=["slots", "generate"])
def test_ids_without_a_token_are_never_sampled(config, temperature, capsys):
    model, tokenizer = make(config), tokenizer_of(KNOWN)
    model.generation_config.eos_token_id = [2, 90]  # an end that can never come
    sampling = SamplingConfig(max_new_tokens=8, min_new_tokens=8, temperature=temperature)
    prompts = [[4, 13], [7, 39, 20]]
    got = generate(model, tokenizer, prompts, sampling, samples=4)
    drawn = {token for row in token_ids(got) for token in row}
    assert drawn <= set(KNOWN) - {2}
    generate(model, tokenizer, prompts, sampling)
    line = "rollout: 61 of 97 ids have no token in the tokenizer and are never sampled"
    assert capsys.readouterr().err.count(line) == 1


@pytest.mark.parametrize("known", [KNOWN, range(40)])
def test_logprobs_are_normalized_over_ids_with_a_token(known):
    model, tokenizer = tiny_llama(), tokenizer_of(known)
    policy = Policy(model, choose("auto", torch.device("cpu"))[0], flat=True)
    policy.support = find_support(tokenizer, 97)
    sampling = SamplingConfig(max_new_tokens=6, temperature=0.7, seed=3)
    got = generate(policy, tokenizer, [[4, 13], [7, 39, 20]], sampling, logprobs=True)
    rows = rows_of([4, 13, *token_ids(got)[0]], [7, 39, 20, *token_ids(got)[1]])
    again = policy(rows, temperature=0.7, sampled=True).logp.split(rows.lengths.sub(1).tolist())
    excluded = [index for index in range(97) if index not in known]
    model.set_attn_implementation("sdpa")
    for prompt, one, ours in zip((2, 3), got, again, strict=True):
        row = (
            rows.tokens[: rows.row_lengths[0]]
            if prompt == 2
            else rows.tokens[rows.row_lengths[0] :]
        )
        logits = model(input_ids=row[None], use_cache=False).logits[0].detach()
        logits[:, excluded] = -torch.inf
        plain = (logits / 0.7).log_softmax(-1)[prompt - 1 : -1]
        expected = plain.gather(1, torch.tensor(one.token_ids)[:, None]).squeeze(1)
        assert_close(torch.tensor(one.logprobs), expected, rtol=0, atol=1e-5)
        assert_close(ours[prompt - 1 :].detach(), expected, rtol=0, atol=1e-5)


def test_a_prompt_that_the_model_does_not_embed_is_named():
    tokenizer = tokenizer_of(range(99))
    with pytest.raises(DataError, match=r"prompts: number 1: token id 98 has no embedding"):
        generate(tiny_llama(), tokenizer, [[3], [98]], GREEDY)


TRUNCATED = SamplingConfig(
    max_new_tokens=9, min_new_tokens=4, temperature=0.7, top_k=20, top_p=0.9, min_p=0.01, seed=2
)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 0.15)])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_logprobs_are_those_of_the_whole_distribution(name, dtype, most):
    """Before truncation and bans. bf16: logits near 10 are 1/32 apart."""
    model = make(ARCHITECTURES[name]).to(dtype)
    got = generate(model, TOKENIZER, PROMPTS, TRUNCATED, samples=2, batch_size=4, logprobs=True)
    plain = generate(model, TOKENIZER, PROMPTS, TRUNCATED, samples=2, batch_size=4)
    assert token_ids(got) == token_ids(plain)
    assert all(one.logprobs == [] for one in plain)  # nobody pays who did not ask
    for number, one in enumerate(got):
        tokens, logprobs = one.token_ids, one.logprobs
        row = torch.tensor([PROMPTS[number // 2] + tokens])
        logits = model(input_ids=row, use_cache=False).logits[0].float().detach()
        whole = (logits / 0.7).log_softmax(-1)[-len(tokens) - 1 : -1]
        expected = whole.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert_close(torch.tensor(logprobs), expected, atol=most, rtol=0)


def test_unavailable_logprobs_are_refused():
    bloom = make(BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4))
    with pytest.raises(
        ConfigError, match=r"rollout_logprobs: got reuse.* BloomForCausalLM does not support"
    ):
        generate(bloom, TOKENIZER, PROMPTS[:2], SAMPLED, logprobs=True)
    with pytest.raises(ValueError, match="temperature 0"):
        generate(tiny_llama(), TOKENIZER, PROMPTS[:2], GREEDY, logprobs=True)


def test_a_streamer_is_given_the_prompt_then_each_token():
    seen = []
    streamer = SimpleNamespace(put=lambda t: seen.append(t.tolist()), end=lambda: seen.append("."))
    model = tiny_llama()
    [row] = token_ids(generate(model, TOKENIZER, PROMPTS[:1], GREEDY, streamer=streamer))
    assert seen == [PROMPTS[0], *([token] for token in row), "."]


def test_bad_input_is_refused_by_name():
    model = tiny_llama(max_position_embeddings=32)
    with pytest.raises(ConfigError, match="Try max_new_tokens=2"):
        generate(model, TOKENIZER, PROMPTS, GREEDY)
    with pytest.raises(DataError, match="number 1 has no tokens"):
        generate(model, TOKENIZER, [[5], []], GREEDY)
    assert token_ids(generate(model, TOKENIZER, [], GREEDY)) == []


@pytest.mark.parametrize("from_the_start", [True, False])
def test_damaged_weights_are_refused(from_the_start):
    model = tiny_llama()
    if not from_the_start:
        generate(model, TOKENIZER, PROMPTS[:1], GREEDY)
    model.model.norm.weight.data[0] = torch.nan
    with pytest.raises(NonFinite, match="not finite"):
        generate(model, TOKENIZER, PROMPTS[:1], GREEDY)
