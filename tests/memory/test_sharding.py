"""Memory of sharded runs: bytes by hand, what the host keeps, advice, and refusals."""

import json

import pytest

from rlhf_cli import cli
from rlhf_cli.config.args import parse
from rlhf_cli.errors import OutOfMemory
from rlhf_cli.memory import limit
from rlhf_cli.memory.advice import cheapest_overrides
from rlhf_cli.memory.device import Device
from rlhf_cli.memory.estimate import estimate_memory
from rlhf_cli.memory.parts import Rows
from rlhf_cli.memory.sharding import Sharding
from rlhf_cli.memory.table import format_estimate
from rlhf_cli.registry import COMMANDS
from rlhf_cli.resolve import resolve

GPU = Device("GPU", "cuda", 24 * 10**9)
ROWS = Rows(longest=128, mean=128.0)
COUNT = 984_192
"""Parameters of the shipped model: 1,024 x 128 embeddings, tied, and 4 layers of 128 and 384."""

ROOT = 1024 * 128 + 128
"""Of these, of the embeddings and the last norm."""

LAYER = (COUNT - ROOT) // 4
TRAINS = {"sft": (), "reward": (), "dpo": (), "bco": (), "ppo": ("reward.length_penalty=1",)}

LLAMA_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def training(stage, *words):
    command = COMMANDS[stage]
    model = [] if any(word.startswith("model=") for word in words) else ["model=tiny", "data=tiny"]
    given = [*model, "train.precision=bf16", *TRAINS[stage], *words]
    return resolve(command, parse(command, given)).config


def estimate(stage, *words, processes=4, rows=ROWS, device=GPU):
    given = [*words, f"launch.processes={processes}"]
    return estimate_memory(stage, training(stage, *given), rows, device, processes=processes)


def update(stage, *words, **given):
    return dict(estimate(stage, *words, **given).phases["update"])


def test_weights_gradients_and_optimizer_are_divided():
    found = update("sft", "launch.shard=full")
    assert found["fp32 masters"] == COUNT
    assert found["optimizer"] == 2 * COUNT
    assert "policy weights" not in found  # the fp32 shards are what is gathered


def test_what_is_whole_at_once_by_hand():
    gathered = {kind: update("sft", f"launch.shard={kind}") for kind in ("full", "grad_op")}
    assert gathered["full"]["gathered weights"] == 2 * (ROOT + 2 * LAYER)
    assert gathered["grad_op"]["gathered weights"] == 2 * COUNT
    # at the beginning of the backward pass: the output layer's gradient in bf16, and of a layer
    # the gradients in bf16, in fp32 before and after the reduce-scatter
    expected = 2 * 1024 * 128 + (2 + 4 + 1) * LAYER
    assert gathered["full"]["gradient buffers"] == expected


def test_groups_of_hybrid_divide_among_themselves():
    hybrid = update("sft", "launch.shard=hybrid", "launch.replicas=2", processes=8)
    assert hybrid["fp32 masters"] == update("sft", "launch.shard=full")["fp32 masters"] == COUNT


def test_an_adapter_is_whole_and_its_base_is_divided():
    words = ("adapter=lora", "adapter.rank=4", "launch.shard=full")
    adapter = 4 * 4 * (4 * 2 * 128 + 3 * (128 + 384))
    found = update("sft", *words)
    assert found["policy weights"] == -(-2 * COUNT // 4) + 2 * adapter
    assert found["fp32 masters"] == 4 * adapter
    assert found["optimizer"] == 8 * adapter
    assert "gradient buffers" not in found
    assert found["gathered weights"] == 2 * (ROOT + 2 * LAYER)


def test_a_reference_copy_is_divided_too_and_whole_beside_the_policy():
    found = update("dpo", "model.reference=copy", "launch.shard=full")
    assert found["reference weights"] == 2 * COUNT // 4
    assert found["gathered weights"] == 2 * (2 * ROOT + 2 * LAYER)


def test_responses_are_decoded_with_all_weights():
    found = estimate("ppo", "launch.shard=full")
    assert found.phases["rollout"]["gathered weights"] == 2 * COUNT
    assert any("every process" in note for note in found.notes)
    samples = estimate("sft", "launch.shard=full").phases
    assert samples["rollout"]["gathered weights"] == 2 * COUNT
    assert "rollout" not in estimate("sft", "launch.shard=full", "log.sample_prompts=0").phases
    assert "rollout" not in estimate("sft").phases


@pytest.mark.parametrize(
    ("offload", "device", "host"),
    [
        ("optimizer", ["policy weights", "gradients"], ["fp32 masters", "optimizer", "gradients"]),
        ("all", [], ["fp32 masters", "optimizer", "gradients"]),
    ],
)
def test_offload_moves_parts_to_the_host(offload, device, host):
    words = ("launch.shard=full", "train.micro_batch_tokens=64", f"launch.offload={offload}")
    found = estimate("sft", *words)
    held = found.phases["update"]
    assert set(found.host) == set(host)
    assert found.host["optimizer"] == 2 * COUNT
    names = {"policy weights", "fp32 masters", "gradients", "optimizer"}
    assert names & held.keys() == set(device)
    assert sum(found.host.values()) == 4 * COUNT
    assert "host:" in format_estimate(found, GPU)


def test_offload_of_a_frozen_base_leaves_the_adapter_on_the_device():
    found = estimate("sft", "adapter=lora", "launch.shard=full", "launch.offload=all")
    assert set(found.host) == {"policy weights"}
    assert "optimizer" in found.phases["update"]


def test_on_a_cpu_the_host_is_the_device():
    cpu = Device("CPU", "cpu", 10**12)
    words = ("launch.shard=full", "launch.offload=all")
    found = estimate("sft", *words, device=cpu)
    assert not found.host
    assert found.phases["update"]["optimizer"] == 2 * COUNT


def test_a_cpu_keeps_what_was_gathered_and_reduced_and_a_gpu_does_not():
    cpu = Device("CPU", "cpu", 10**12)
    assert update("sft", "launch.shard=full", device=cpu)["freed"] == (2 + 4) * COUNT
    assert "freed" not in update("sft", "launch.shard=full")
    assert "freed" not in update("sft", device=cpu)


def test_context_parallelism_divides_the_tokens_of_a_row():
    rows = Rows(longest=512, mean=512.0)
    words = ("launch.shard=full", "train.batch_size=1", "train.micro_batch_tokens=512")
    whole = update("sft", *words, rows=rows)
    divided = update("sft", *words, "launch.context_parallel=4", rows=rows)
    assert divided["activations"] < 0.3 * whole["activations"]
    assert divided["fp32 masters"] == whole["fp32 masters"]
    assert Sharding.of(training("sft", "launch.processes=4").launch, 4, "cuda").data_parallel == 4


@pytest.mark.parametrize("stage", TRAINS)
@pytest.mark.parametrize("kind", ["full", "grad_op"])
def test_more_processes_need_less_each(stage, kind):
    peaks = [
        estimate(stage, f"launch.shard={kind}", processes=n).total("save") for n in (1, 2, 4, 8)
    ]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] > peaks[-1]


def folder(tmp_path, **sizes):
    path = tmp_path / "model"
    path.mkdir()
    named = {**LLAMA_70B, **sizes, "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    (path / "config.json").write_text(json.dumps(named))
    return [f"model={path}", "model.tokenizer=tiny", "data=tiny", "device_memory=80GB"]


EIGHT = ("launch.processes=8", "--dry-run", "--json")


def test_a_dry_run_plans_for_a_cluster_from_a_config_alone(tmp_path, capsys):
    words = folder(tmp_path, num_hidden_layers=8)
    assert cli.main(["sft", *words, "launch.shard=full", *EIGHT]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["run"]["processes"] == 8
    assert found["run"]["shard"] == "full"
    count = found["run"]["parameters"]
    assert found["memory"]["phases"]["update"]["optimizer"] == count
    assert found["memory"]["usable_bytes"] == int(0.95 * 80e9)


def test_several_processes_are_told_to_shard_and_to_offload(tmp_path, capsys):
    words = folder(tmp_path)
    assert cli.main(["sft", *words, *EIGHT]) == OutOfMemory.exit_code
    found = json.loads(capsys.readouterr().out)["memory"]["overrides"]
    assert found[0]["override"] == "launch.shard=full launch.offload=all log.sample_prompts=0"
    assert cli.main(["sft", *words, "launch.shard=full", "adapter=lora", *EIGHT]) != 0
    found = json.loads(capsys.readouterr().out)["memory"]["overrides"]
    assert found[0]["override"] == "log.sample_prompts=0"


def test_each_override_saves_what_it_says(tmp_path):
    words = folder(tmp_path, num_hidden_layers=8)
    gpu = Device("GPU", "cuda", 32 * 10**9)
    before = estimate("sft", *words, device=gpu)
    cfg = training("sft", *words, "launch.processes=4")
    found = cheapest_overrides("sft", cfg, ROWS, gpu, processes=4)
    assert any("launch.offload" in one.text for one in found)
    for one in found:
        after = estimate("sft", *words, *one.text.split(), device=gpu)
        assert one.saves_bytes == before.peak[1] - after.peak[1]
        assert one.fits == after.fits


def test_a_rollout_that_needs_too_much_is_refused_with_the_reason(tmp_path):
    words = folder(tmp_path, num_hidden_layers=40)
    command = COMMANDS["ppo"]
    given = [*words, "reward.length_penalty=1", "value=shared", "adapter=lora", "launch.shard=full"]
    cfg = resolve(command, parse(command, [*given, "launch.processes=8"])).config
    device = Device("GPU", "cuda", 64 * 10**9)
    with pytest.raises(OutOfMemory, match="rollout") as refused:
        limit.choose_tokens(cfg, ROWS, device, 8)
    assert "all weights on every process" in str(refused.value)


def test_a_host_that_is_too_small_for_what_is_offloaded_is_refused(monkeypatch):
    words = ("launch.shard=full", "launch.offload=all", "launch.processes=4")
    monkeypatch.setattr(limit, "machine_memory", lambda: 10**7)
    with pytest.raises(OutOfMemory, match=r"launch\.offload: got all"):
        limit.choose_tokens(training("sft", *words), ROWS, GPU, 4)
    monkeypatch.setattr(limit, "machine_memory", lambda: 10**8)
    assert limit.choose_tokens(training("sft", *words), ROWS, GPU, 4)[0]
