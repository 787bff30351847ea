"""Against a real vLLM on this machine's CPU: `make test-server` installs it into build/vllm."""

import os
import threading
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rlhf_cli.context import RunContext
from rlhf_cli.kernels.registry import choose
from rlhf_cli.models.attach_adapters import attach_adapters
from rlhf_cli.models.config import AdapterConfig
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.resolve import ModelSource
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.engine import generate
from rlhf_cli.rollout.server.config import RolloutConfig
from rlhf_cli.rollout.server.open import open_engine

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / "build" / "vllm" / "bin" / "python"
COMMAND = f"{PYTHON} -m vllm.entrypoints.openai.api_server"
TOKENIZER_FOLDER = ROOT / "recipes" / "tiny" / "model"
BOUND = 1e-4
"""Largest difference of a log-prob in nats, fp32 in both; 2e-6 was seen."""

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not PYTHON.exists(), reason="no build/vllm: run make test-server"),
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(scope="module", autouse=True)
def _cpu():
    """What vLLM's build for CPUs reads from the environment."""
    patch = pytest.MonkeyPatch()
    patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    patch.setenv("OMP_NUM_THREADS", "1")
    yield
    patch.undo()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TOKENIZER_FOLDER)


def make_model(tokenizer, rows=None, seed=0, tied=False):
    """A small model with heads of 32, which vLLM's attention for CPUs needs."""
    torch.manual_seed(seed)
    cfg = LlamaConfig(
        vocab_size=rows or len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.1,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(cfg).eval()


def policy_of(model, adapters=None):
    return Policy(model, choose("auto", torch.device("cpu"))[0], flat=True, adapters=adapters)


def prompts_of(count=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(5, 1000, (k % 7 + 3,), generator=generator).tolist() for k in range(count)
    ]


def change(model, seed):
    """Move all weights a little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in model.parameters():
            param += 0.02 * torch.randn(param.shape, generator=generator)


def largest_difference(model, tokenizer, responses, temperature=1.0):
    """Between the servers' log-probs and the model's over ids that have a token, nats."""
    twin = LlamaForCausalLM(model.config).eval()  # without the trainer's attention
    twin.load_state_dict(model.state_dict())
    twin.set_attn_implementation("eager")
    found = 0.0
    for one in responses:
        with torch.no_grad():
            logits = twin(torch.tensor([[*one.prompt_ids, *one.token_ids]])).logits[0]
        own = (logits[:, : len(tokenizer)] / temperature).log_softmax(-1)
        first = len(one.prompt_ids) - 1
        for k, (token, value) in enumerate(zip(one.token_ids, one.logprobs, strict=True)):
            found = max(found, abs(float(own[first + k, token]) - value))
    return found


def opened(policy, tokenizer, sampling, tmp_path, **cfg):
    out = tmp_path / "run"
    out.mkdir(exist_ok=True)
    ctx = RunContext(torch.device("cpu"), torch.float32, 0, out)
    return open_engine(RolloutConfig(**cfg), policy, tokenizer, sampling, ctx, 256)


@pytest.fixture(scope="module")
def started(tokenizer, tmp_path_factory):
    """An engine with a started vLLM of a model with rows that have no token."""
    policy = policy_of(make_model(tokenizer, rows=len(tokenizer) + 64))
    sampling = SamplingConfig(max_new_tokens=24, temperature=0.7, seed=3)
    folder = tmp_path_factory.mktemp("weights")
    engine = opened(policy, tokenizer, sampling, folder, start=COMMAND)
    yield engine, policy
    engine.close()
    assert not engine.sync.folder.exists()


def test_greedy_tokens_are_ours_and_log_probs_too(started, tokenizer):
    engine, policy = started
    engine.hand_over(0)
    prompts = prompts_of()
    engine = engine.with_sampling(SamplingConfig(max_new_tokens=24, temperature=0))
    found = engine.generate(prompts, samples=1, prompt_numbers=range(len(prompts)))
    own = generate(policy, tokenizer, prompts, engine.sampling)
    assert [one.token_ids for one in found] == [one.token_ids for one in own]
    for temperature in (1.0, 0.7):
        engine = engine.with_sampling(
            SamplingConfig(max_new_tokens=24, temperature=temperature, seed=3)
        )
        found = engine.generate(prompts, samples=4, prompt_numbers=range(len(prompts)))
        assert largest_difference(policy.model, tokenizer, found, temperature) < BOUND
        assert all(max(one.token_ids) < len(tokenizer) for one in found)


def test_a_repeated_rollout_is_the_same_in_any_order(started):
    engine, _ = started
    engine.hand_over(0)
    prompts = prompts_of(16)
    engine = engine.with_sampling(SamplingConfig(max_new_tokens=24, temperature=1.0, seed=5))
    first = engine.generate(prompts, samples=4, prompt_numbers=range(16))
    again = engine.generate(prompts[::-1], samples=4, prompt_numbers=range(15, -1, -1))
    by_place = {(15 - one.prompt_index, one.index % 4): one.token_ids for one in again}
    assert {(one.prompt_index, one.index % 4): one.token_ids for one in first} == by_place
    assert len({tuple(one.token_ids) for one in first}) == 64


def test_a_stop_string_and_an_end_token_end_a_response_and_stay_in_it(started, tokenizer):
    engine, policy = started
    engine.hand_over(0)
    prompts = prompts_of(12)
    engine = engine.with_sampling(SamplingConfig(max_new_tokens=32, temperature=0))
    plain = engine.generate(prompts, samples=1, prompt_numbers=range(12))
    stop = tokenizer.decode([plain[0].token_ids[5]])
    engine = engine.with_sampling(SamplingConfig(max_new_tokens=32, temperature=0, stop=[stop]))
    found = engine.generate(prompts, samples=1, prompt_numbers=range(12))
    own = generate(policy, tokenizer, prompts, engine.sampling)
    assert [one.token_ids for one in found] == [one.token_ids for one in own]
    assert [one.finished for one in found] == [one.finished for one in own]
    assert found[0].finished


def test_the_weights_of_a_step_generate_after_it(started, tokenizer):
    engine, policy = started
    prompts = prompts_of()
    for version in (1, 2):
        change(policy.model, version)
        engine.hand_over(version)
        engine = engine.with_sampling(SamplingConfig(max_new_tokens=24, temperature=0))
        found = engine.generate(prompts, samples=1, prompt_numbers=range(len(prompts)))
        own = generate(policy, tokenizer, prompts, engine.sampling)
        assert [one.token_ids for one in found] == [one.token_ids for one in own]
        assert {one.weights_version for one in found} == {version}


def test_requests_in_flight_go_on_with_the_new_weights_and_count_as_of_the_old(started, tokenizer):
    engine, policy = started
    change(policy.model, 8)
    engine.hand_over(8)
    engine = engine.with_sampling(SamplingConfig(max_new_tokens=200, temperature=1.0, seed=1))
    found = []
    prompts = prompts_of(24)
    thread = threading.Thread(
        target=lambda: found.extend(engine.generate(prompts, samples=2, prompt_numbers=range(24)))
    )
    thread.start()
    time.sleep(1)
    change(policy.model, 9)
    engine.hand_over(9)
    thread.join(120)
    assert len(found) == 48
    assert {one.weights_version for one in found} <= {8, 9}
    assert 8 in {one.weights_version for one in found}
    engine = engine.with_sampling(SamplingConfig(max_new_tokens=24, temperature=0))
    after = engine.generate(prompts, samples=1, prompt_numbers=range(24))
    own = generate(policy, tokenizer, prompts, engine.sampling)
    assert [one.token_ids for one in after] == [one.token_ids for one in own]


def test_tied_embeddings_of_a_step_generate_after_it(tokenizer, tmp_path):
    """A vLLM on a CPU packs the output layer, and kept the first one where it was tied."""
    policy = policy_of(make_model(tokenizer, tied=True))
    sampling = SamplingConfig(max_new_tokens=24)
    engine = opened(policy, tokenizer, sampling, tmp_path, start=COMMAND)
    prompts = prompts_of()
    for version in (0, 1, 2):
        change(policy.model, version)
        engine.hand_over(version)
        found = engine.generate(prompts, samples=2, prompt_numbers=range(len(prompts)))
        assert largest_difference(policy.model, tokenizer, found) < BOUND
    engine.close()


def test_the_adapter_of_a_step_generates_after_it_and_the_server_ends_with_the_engine(
    tokenizer, tmp_path
):
    base = make_model(tokenizer)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    source = ModelSource(str(tmp_path / "base"))
    adapters = attach_adapters(base, source, AdapterConfig(kind="lora", rank=4), 0)
    policy = policy_of(adapters.model.eval(), adapters)
    sampling = SamplingConfig(max_new_tokens=24, temperature=0)
    engine = opened(policy, tokenizer, sampling, tmp_path, start=COMMAND)
    process = engine.process._process
    prompts, seen = prompts_of(), set()
    for version in (0, 1, 2):
        generator = torch.Generator().manual_seed(version)
        for param in policy.parameters():
            if param.requires_grad:
                param.data += 0.1 * torch.randn(param.shape, generator=generator)
        engine.hand_over(version)
        found = engine.generate(prompts, samples=1, prompt_numbers=range(len(prompts)))
        own = generate(policy, tokenizer, prompts, sampling)
        assert [one.token_ids for one in found] == [one.token_ids for one in own]
        assert {one.weights_version for one in found} == {version}
        seen.add(str([one.token_ids for one in found]))
        api = engine.connections[0].api
        served = api.facts(syncs=True, adapters=True)
        assert served.models == ["policy", engine.sync.owner.name(version)]
    assert len(seen) == 3
    engine.close()
    assert process.poll() is not None
    assert "Application startup complete" in (tmp_path / "run" / "server.log").read_text()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
