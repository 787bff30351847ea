"""Recorded decoding steps compared with plain ones; on the CPU a tape replaces CUDA graphs."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli import cli
from rlhf_cli.errors import ConfigError
from rlhf_cli.rollout import continuous_batching, cuda_graphs, engine
from rlhf_cli.rollout.continuous_batching import DecodeOptions, decode, generation_mode
from rlhf_cli.rollout.cuda_graphs import StaticDecodeStep
from rlhf_cli.rollout.engine import generate
from rlhf_cli.rollout.response import Response
from rlhf_cli.rollout.slot_cache import SLOT_ATTENTION, DecodeModel, SlotCache
from tests.helpers import tiny_llama
from tests.models.test_policy import ARCHITECTURES
from tests.rollout import tape
from tests.rollout.test_engine import (
    GREEDY,
    PROMPTS,
    SAMPLED,
    TOKENIZER,
    lora_policy,
    make,
    token_ids,
)

GRAPHS = replace(GREEDY, cuda_graphs=True)


@pytest.fixture
def recorded(monkeypatch):
    """Recording on the CPU; has an entry for each recorded step."""
    made = []
    monkeypatch.setattr(engine, "capture", lambda run: tape.record(run, lambda: made.append(run)))
    monkeypatch.setattr(engine, "require_cuda", lambda sampling, device: None)
    return made


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("llama", "gpt2") else pytest.param(name, marks=pytest.mark.slow)
        for name in ARCHITECTURES
    ],
)
def test_recorded_steps_give_the_same_responses(name, recorded, monkeypatch, capsys):
    """Also where few prompts join at a time, so that slots are empty between others."""
    model = make(ARCHITECTURES[name])
    for slots, joining in ((1, 8192), (4, 8192), (4, 8), (64, 8192)):
        monkeypatch.setattr(continuous_batching, "PREFILL_TOKENS", joining)
        expected = generate(model, TOKENIZER, PROMPTS, GREEDY, samples=3, batch_size=slots)
        assert generate(model, TOKENIZER, PROMPTS, GRAPHS, samples=3, batch_size=slots) == expected
    assert recorded
    assert capsys.readouterr().err.count("CUDA graphs equal") == 1


def logits_of(model, record):
    """[n, V] of every token of fixed responses, row after row."""
    rows = [Response(number, number, prompt) for number, prompt in enumerate(PROMPTS)]
    found = [[] for _ in rows]

    def choose(logits, live):
        for row, own in zip(live, logits, strict=True):
            found[row.index].append(own)
        return [5 + row.index for row in live]

    def ended(row):
        return len(row.token_ids) == 6 * (1 + row.index)

    decode(model, rows, DecodeOptions(3, 128, record), choose, ended)
    return torch.cat([torch.stack(each) for each in found])


def test_recorded_steps_have_the_same_logits():
    """fp32; idle rows change how a product is cut, so rounding may differ."""
    model = make(ARCHITECTURES["gemma2"])
    assert_close(logits_of(model, tape.record), logits_of(model, None), atol=1e-5, rtol=1e-5)


def test_slots_without_a_response_are_not_written():
    """They may hold a prompt."""
    model = tiny_llama()
    cache = SlotCache(4 + 1, 64, powers_of_two=True)
    forward = DecodeModel(model, cache)
    with generation_mode(model, SLOT_ATTENTION):
        step = StaticDecodeStep(forward, tape.record)
        step([Response(n, n, PROMPTS[1]) for n in range(4)])
        stores = cache._stores()
        before = [store.clone() for store in stores]
        step([Response(0, 0, PROMPTS[1], [7])])
    for store, was in zip(stores, before, strict=True):
        assert torch.equal(store[1:4], was[1:4])
        assert not torch.equal(store[0], was[0])


def test_a_step_is_recorded_once_per_width(recorded, monkeypatch):
    """Rows of 30 to 130 tokens: caches 32, 64, 128 and 160 wide, the last because it is full."""
    model = tiny_llama()
    model.generation_config.eos_token_id = None
    sampling = replace(GRAPHS, max_new_tokens=100)
    generate(model, TOKENIZER, PROMPTS[4:5], sampling)  # the probe is over
    recorded.clear()
    widths, passes = [], []
    real, forward = StaticDecodeStep._run, DecodeModel.__call__
    monkeypatch.setattr(
        StaticDecodeStep,
        "_run",
        lambda self: (widths.append(self._forward.cache.width), real(self))[1],
    )
    monkeypatch.setattr(
        DecodeModel, "__call__", lambda self, *given: (passes.append(1), forward(self, *given))[1]
    )
    [row] = token_ids(generate(model, TOKENIZER, PROMPTS[4:5], sampling))
    assert len(row) == 100
    assert widths == [32, 32, 64, 64, 128, 128, 160, 160]  # each twice: to warm up, to record
    assert len(recorded) == 4
    assert len(passes) == 1 + 8  # the prompt's; all others are replayed


def test_weights_in_new_memory_are_used(recorded):
    """A parameter may get new memory between rollouts, as when its dtype changes."""
    model = tiny_llama()
    generate(model, TOKENIZER, PROMPTS, GRAPHS, batch_size=4)
    generator = torch.Generator().manual_seed(3)
    for param in model.parameters():
        param.data = param.data + 0.1 * torch.randn(param.shape, generator=generator)
    expected = generate(model, TOKENIZER, PROMPTS, GREEDY, batch_size=4)
    assert generate(model, TOKENIZER, PROMPTS, GRAPHS, batch_size=4) == expected


def test_adapters_and_sampler_logprobs(recorded):
    policy = lora_policy()
    plain, other = (
        generate(policy, TOKENIZER, PROMPTS, sampling, samples=2, batch_size=4, logprobs=True)
        for sampling in (SAMPLED, replace(SAMPLED, cuda_graphs=True))
    )
    assert token_ids(other) == token_ids(plain)
    for one, two in zip(plain, other, strict=True):
        assert one.logprobs == pytest.approx(two.logprobs, abs=1e-5)


def test_a_model_that_reads_numbers_on_the_host_is_refused(recorded):
    model = tiny_llama()
    model.model.norm.register_forward_hook(lambda m, i, out: out * (1 + float(out.sum() > 1e9)))
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM cannot be replayed .*not permitted"):
        generate(model, TOKENIZER, PROMPTS, GRAPHS)


def test_a_replay_with_other_logits_is_refused(recorded, monkeypatch):
    def stale(run):
        output = run().clone()
        return lambda: output

    monkeypatch.setattr(engine, "capture", stale)
    with pytest.raises(ConfigError, match=r"cannot be replayed \(log-probs differ by"):
        generate(tiny_llama(), TOKENIZER, PROMPTS, GRAPHS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there CUDA graphs are no error")
@pytest.mark.parametrize(
    "words",
    [
        ["generate", "model=tiny", "prompt=Tea"],
        ["ppo", "model=tiny", "data=tiny", "reward.length_penalty=1", "output_dir=run"],
        ["evaluate", "tiny", "prompts=p.txt", "judge=j.py:score", "output=found.json"],
    ],
)
def test_cuda_graphs_without_cuda_are_refused_before_a_model_is_loaded(
    words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("Tea\n")
    (tmp_path / "j.py").write_text("def score(prompts, responses): return [1.0]\n")
    assert cli.main([*words, "sampling.cuda_graphs=true"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == (
        "error: sampling.cuda_graphs: got true, and this runs on cpu; need a GPU with CUDA. "
        "Try sampling.cuda_graphs=false"
    )
    assert not any(line.startswith(("policy:", "model:", "probe:")) for line in lines)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_cuda_graphs_have_the_same_logits(name, dtype):
    """bf16: logits near 10 are 1/32 apart, and idle rows change how a product is cut."""
    model = make(ARCHITECTURES[name]).to("cuda", dtype)
    most = 1e-4 if dtype == torch.float32 else 0.2
    plain = logits_of(model, None)
    assert_close(logits_of(model, cuda_graphs.capture), plain, atol=most, rtol=0)
    if dtype == torch.float32:
        expected = generate(model, TOKENIZER, PROMPTS, GREEDY, samples=2, batch_size=4)
        assert generate(model, TOKENIZER, PROMPTS, GRAPHS, samples=2, batch_size=4) == expected
