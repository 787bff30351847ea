"""Weights reach the servers under names that say whose and how old they are."""

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from rlhf_cli.errors import ConfigError, InferenceServerError
from rlhf_cli.kernels.registry import choose
from rlhf_cli.models.attach_adapters import attach_adapters
from rlhf_cli.models.config import AdapterConfig
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.resolve import ModelSource
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.engine import generate
from rlhf_cli.rollout.server.hand_over import WeightSync, choose_folder
from rlhf_cli.rollout.server.owner import Owner
from rlhf_cli.rollout.server.write import PolicyWriter, choose_kind
from tests.helpers import tiny_llama
from tests.rollout.server.helpers import PROMPTS, TOKENIZER, engine_of, ids, respond
from tests.rollout.server.stub import model_writer, serving

CPU = torch.device("cpu")
GREEDY = SamplingConfig(max_new_tokens=8, temperature=0)
OWNER, OTHER = Owner("0123456789ab"), Owner("ba9876543210")


def save_tokenizer(folder):
    (Path(folder) / "tokenizer.json").write_text("{}")


TOKENIZER.save_pretrained = save_tokenizer


def policy_of(model, adapters=None):
    return Policy(model, choose("auto", CPU)[0], flat=True, adapters=adapters)


def adapter_policy(folder, **changed):
    """A policy with an adapter that was trained a little, on a base that is in a folder."""
    base = tiny_llama()
    base.save_pretrained(folder)
    cfg = AdapterConfig(**{"kind": "lora", "rank": 4, **changed})
    adapters = attach_adapters(
        AutoModelForCausalLM.from_pretrained(folder), ModelSource(str(folder)), cfg, 0
    )
    policy = policy_of(adapters.model.eval(), adapters)
    change(policy, 1)
    return policy


def change(policy, seed):
    """As if what is trained had been."""
    generator = torch.Generator().manual_seed(seed)
    for param in policy.parameters():
        if param.requires_grad:
            param.data += 0.1 * torch.randn(param.shape, generator=generator)


def sync_of(policy, folder, kind="weights", owner=OWNER, kept=0):
    write = PolicyWriter(policy, TOKENIZER, kind, torch.float32)
    return WeightSync(write, kind, owner, folder / "sync", kept=kept)


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_the_weights_of_a_step_generate_after_it(kind, tmp_path):
    policy = policy_of(tiny_llama())
    with serving(kind=kind, write=model_writer(tiny_llama(seed=7), TOKENIZER)) as stub:
        engine = engine_of(stub, sampling=GREEDY, sync=sync_of(policy, tmp_path))
        seen = []
        for version in (0, 1, 2):
            change(policy, version)
            engine.hand_over(version)
            found = respond(engine, samples=1)
            assert ids(found) == ids(generate(policy, TOKENIZER, PROMPTS, GREEDY))
            assert {one.weights_version for one in found} == {version}
            seen.append(ids(found))
            assert [path.name for path in (tmp_path / "sync").iterdir()] == [str(version)]
        assert len({str(one) for one in seen}) == 3
        engine.close()
        assert not (tmp_path / "sync").exists()
        assert stub.version == "free"


def test_the_caches_are_reset_after_the_weights_are_complete_and_before_anything_goes_on(tmp_path):
    with serving() as stub:
        engine = engine_of(stub, sync=sync_of(policy_of(tiny_llama()), tmp_path))
        before = len(stub.calls)
        engine.hand_over(0)
        engine.hand_over(0)  # nothing happens
    assert stub.paths()[before:] == [
        "/weight_info",
        "/pause",
        "/collective_rpc",
        "/reset_prefix_cache",
        "/update_weight_version",
        "/resume",
    ]


def test_a_reload_that_fails_lets_nothing_go_on_with_half_of_the_weights(tmp_path):
    with serving(reload_error="no such file") as stub:
        engine = engine_of(stub, sync=sync_of(policy_of(tiny_llama()), tmp_path), deadline=10)
        with pytest.raises(InferenceServerError, match=r"HTTP 500.*no such file"):
            engine.hand_over(0)
        assert stub.paused
        assert stub.version == "default"
        stub.reload_error = ""
        engine.hand_over(0)
        assert not stub.paused
        assert stub.version == OWNER.name(0)


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_an_adapter_gets_a_new_name_and_the_old_one_is_unloaded(kind, tmp_path):
    policy = adapter_policy(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    with serving(kind=kind, write=model_writer(base, TOKENIZER)) as stub:
        engine = engine_of(stub, sampling=GREEDY, sync=sync_of(policy, tmp_path, "adapter"))
        for version in (3, 4, 5):
            change(policy, version)
            engine.hand_over(version)
            found = respond(engine, samples=1)
            assert ids(found) == ids(generate(policy, TOKENIZER, PROMPTS, GREEDY))
            assert {one.weights_version for one in found} == {version}
            assert list(stub.adapters) == [OWNER.name(version)]
            assert [path.name for path in (tmp_path / "sync").iterdir()] == [str(version)]
        engine.close()
        assert stub.adapters == {}


def test_with_a_lag_the_adapters_that_requests_in_flight_use_stay(tmp_path):
    policy = adapter_policy(tmp_path / "base")
    with serving() as stub:
        engine = engine_of(stub, sync=sync_of(policy, tmp_path, "adapter", kept=1))
        for version, left in ((0, [0]), (1, [0, 1]), (2, [1, 2])):
            engine.hand_over(version)
            assert list(stub.adapters) == [OWNER.name(one) for one in left]
            assert sorted(path.name for path in (tmp_path / "sync").iterdir()) == list(
                map(str, left)
            )


def test_requests_in_flight_count_as_of_the_weights_that_they_began_with(tmp_path):
    with serving() as stub:
        engine = engine_of(stub, sync=sync_of(policy_of(tiny_llama()), tmp_path, kept=1))
        engine.hand_over(0)
        stub.seconds = 0.3
        found = []
        thread = threading.Thread(target=lambda: found.extend(respond(engine)))
        thread.start()
        while not stub.in_flight:
            pass
        engine.hand_over(1)
        thread.join()
        stub.seconds = 0
        assert {one.weights_version for one in found} == {0}
        assert {one.weights_version for one in respond(engine)} == {1}


def test_a_server_that_starts_again_gets_the_weights_again(tmp_path):
    for kind in ("weights", "adapter"):
        policy = adapter_policy(tmp_path / f"base_{kind}")
        with serving() as stub:
            engine = engine_of(stub, sync=sync_of(policy, tmp_path / kind, kind))
            engine.hand_over(6)
            expected = ids(respond(engine))
            stub.version, stub.weights, stub.adapters = "default", "start", {}
            found = respond(engine)
            assert ids(found) == expected
            assert {one.weights_version for one in found} == {6}
            assert stub.version == OWNER.name(6)


def test_a_server_that_is_ahead_in_a_hand_over_does_not_get_the_older_weights_again(tmp_path):
    with serving() as stub:
        sync = sync_of(policy_of(tiny_llama()), tmp_path, kept=1)
        engine = engine_of(stub, sync=sync)
        engine.hand_over(5)
        stub.version = OWNER.name(6)  # another server has not got them yet
        sync.restore(engine.connections[0].api)
        assert stub.version == OWNER.name(6)


def test_a_hand_over_does_not_wait_for_requests_that_wait_for_a_slot(tmp_path):
    with serving() as stub:
        sync = sync_of(policy_of(tiny_llama()), tmp_path, kept=2)
        engine = engine_of(stub, sync=sync, concurrency=1)
        engine.hand_over(0)
        stub.seconds = 0.3
        found = []
        thread = threading.Thread(target=lambda: found.extend(respond(engine)))
        thread.start()
        while not stub.in_flight:
            pass
        engine.hand_over(1)
        assert thread.is_alive()
        assert not found
        stub.seconds = 0
        thread.join()
    assert [one.weights_version for one in found] == [0, 1, 1, 1, 1, 1, 1, 1]


def test_older_weights_never_answer(tmp_path):
    with serving() as stub:
        sync = sync_of(policy_of(tiny_llama()), tmp_path)
        engine = engine_of(stub, sync=sync)
        engine.hand_over(5)
        stub.version = OWNER.name(4)
        assert {one.weights_version for one in respond(engine)} == {5}
        assert stub.version == OWNER.name(5)


def test_two_trainers_on_one_server_are_refused(tmp_path):
    policy = policy_of(tiny_llama())
    with serving() as stub:
        first = engine_of(stub, sync=sync_of(policy, tmp_path / "a"))
        second = engine_of(stub, sync=sync_of(policy, tmp_path / "b", owner=OTHER))
        first.hand_over(0)
        with pytest.raises(InferenceServerError, match="the weights of another run") as caught:
            second.hand_over(0)
        assert len(str(caught.value).splitlines()) == 1
        assert f"curl -X POST {stub.url}/update_weight_version" in str(caught.value)
        assert {one.weights_version for one in respond(first)} == {0}
        stub.version = OTHER.name(9)  # one that did not look
        with pytest.raises(InferenceServerError, match="the weights of another run"):
            respond(first)
        first.close()
        assert stub.version == OTHER.name(9)


def test_a_run_that_resumes_takes_its_own_server_over(tmp_path):
    policy = policy_of(tiny_llama())
    with serving() as stub:
        stub.version = OWNER.name(30)  # it was killed
        (tmp_path / "sync" / "30").mkdir(parents=True)
        engine = engine_of(stub, sync=sync_of(policy, tmp_path))
        engine.hand_over(20)
        assert stub.version == OWNER.name(20)
        assert [path.name for path in (tmp_path / "sync").iterdir()] == ["20"]


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path):
    def write(folder):
        folder.mkdir()
        (folder / "half").write_bytes(b"1")
        raise OSError(28, "No space left on device")

    with serving() as stub:
        sync = WeightSync(write, "weights", OWNER, tmp_path / "sync")
        with pytest.raises(InferenceServerError, match="No space left on device") as caught:
            engine_of(stub, sync=sync).hand_over(0)
        assert len(str(caught.value).splitlines()) == 1
        assert str(caught.value).startswith(f"rollout.sync_folder: {tmp_path}/sync/0: ")
        assert list((tmp_path / "sync").iterdir()) == []
        assert "/pause" not in stub.paths()


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_merged_weights_say_what_base_and_adapter_say_and_leave_the_policy_as_it_is(kind, tmp_path):
    policy = adapter_policy(tmp_path / "base", kind=kind)
    before = {name: param.clone() for name, param in policy.named_parameters()}
    PolicyWriter(policy, TOKENIZER, "weights", torch.float32)(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    row = torch.tensor([[5, 6, 7, 8, 9, 10]])
    policy.model.set_attn_implementation("eager")
    merged.set_attn_implementation("eager")
    with torch.no_grad():
        assert_close(merged(row).logits, policy.model(row).logits, rtol=1e-4, atol=1e-5)
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
        assert (merged(row).logits - base(row).logits).abs().max() > 0.1
    for name, param in policy.named_parameters():
        assert torch.equal(param, before[name]), name


def test_what_is_handed_over_is_chosen_by_what_servers_can_load(tmp_path):
    whole = policy_of(tiny_llama())
    lora = adapter_policy(tmp_path / "lora")
    dora = adapter_policy(tmp_path / "dora", kind="dora")
    assert choose_kind("auto", whole, sharded=True) == "weights"
    assert choose_kind("auto", lora, sharded=True) == "adapter"
    assert choose_kind("weights", lora, sharded=False) == "weights"
    assert choose_kind("auto", dora, sharded=False) == "weights"
    for sync, policy, sharded, line in (
        ("adapter", whole, False, "trains whole weights. Try rollout.sync=weights"),
        ("adapter", dora, False, "DoRA adapter. Try rollout.sync=weights"),
        ("auto", dora, True, "processes share the weights. Need a plain adapter. Try adapter=lora"),
        ("weights", lora, True, "Try rollout.sync=adapter"),
    ):
        with pytest.raises(ConfigError, match=line):
            choose_kind(sync, policy, sharded=sharded)


def test_the_owner_is_the_same_after_a_resume_and_another_for_each_run(tmp_path):
    one = Owner.of_run(tmp_path / "a")
    assert one == Owner.of_run(tmp_path / "a")
    assert one != Owner.of_run(tmp_path / "b")
    assert one.version(one.name(12)) == 12
    assert one.version("default") is None
    assert not one.is_foreign("default")
    assert not one.is_foreign(one.name(3))
    assert Owner.of_run(tmp_path / "b").is_foreign(one.name(3))


def test_weights_are_in_memory_unless_a_folder_is_given(tmp_path, monkeypatch):
    from rlhf_cli.rollout.server import hand_over

    assert choose_folder(str(tmp_path), OWNER) == tmp_path / "rlhf-0123456789ab"
    monkeypatch.setattr(hand_over, "MEMORY", tmp_path)
    assert choose_folder("", OWNER).parent == tmp_path
    monkeypatch.setattr(hand_over, "MEMORY", tmp_path / "missing")
    assert choose_folder("", OWNER).parent != tmp_path / "missing"


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_output_layer_is_written_apart_for_a_server_that_packs_it(tied, tmp_path):
    policy = policy_of(tiny_llama(tie_word_embeddings=tied))
    PolicyWriter(policy, TOKENIZER, "weights", torch.float32, untied=True)(tmp_path / "new")
    stored = {}
    for file in (tmp_path / "new").glob("*.safetensors"):
        stored |= load_file(file)
    inner = policy.model
    assert torch.equal(stored["lm_head.weight"], inner.lm_head.weight)
    assert torch.equal(stored["model.embed_tokens.weight"], inner.model.embed_tokens.weight)
    assert len(stored) == len(dict(inner.named_parameters(remove_duplicate=False)))
    # vLLM reads every file of the folder, transformers model.safetensors alone
    read = type(inner)(type(inner.config).from_pretrained(tmp_path / "new")).eval()
    read.load_state_dict(stored)
    assert read.config.tie_word_embeddings is False
    assert inner.config.tie_word_embeddings is tied
    inner.set_attn_implementation("eager")
    read.set_attn_implementation("eager")
    row = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert_close(read(row).logits, inner(row).logits)
