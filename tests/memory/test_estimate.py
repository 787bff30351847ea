"""Estimates of whole commands: bytes by hand, and what a run measures."""

import json
from dataclasses import replace

import pytest

from rlhf_cli import cli
from rlhf_cli.config.args import parse
from rlhf_cli.errors import OutOfMemory
from rlhf_cli.memory import limit
from rlhf_cli.memory.advice import cheapest_overrides
from rlhf_cli.memory.device import Device
from rlhf_cli.memory.estimate import Rows, estimate_memory
from rlhf_cli.memory.model_files import read_shape
from rlhf_cli.memory.rollout import cache_bytes
from rlhf_cli.memory.shape import shape_of
from rlhf_cli.memory.table import format_estimate
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.registry import COMMANDS
from rlhf_cli.resolve import resolve

DEVICE = Device("CPU", "cpu", 10**12)
GPU = Device("GPU", "cuda", 24 * 10**9)
ROWS = Rows(longest=128, mean=128.0)
COUNT = 984_192
"""Parameters of the shipped model: 1,024 x 128 embeddings, and 4 layers of 128 and 384."""

HEAD = 1024 * 128
"""Of these, of the output layer."""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


TRAINS = {"sft": (), "reward": (), "dpo": (), "bco": (), "ppo": ("reward.length_penalty=1",)}


def config(stage, *words):
    command = COMMANDS[stage]
    return resolve(command, parse(command, ["model=tiny", *words])).config


def training(stage, *words):
    return config(stage, "data=tiny", *TRAINS[stage], *words)


def parts(stage, *words, phase="update", device=DEVICE, rows=ROWS):
    return dict(estimate_memory(stage, training(stage, *words), rows, device).phases[phase])


def test_bytes_of_full_training_in_bf16_by_hand():
    assert read_shape(ModelConfig(path="tiny")).parameters == COUNT
    found = parts("sft", "train.precision=bf16")
    assert found["policy weights"] == 2 * COUNT
    assert found["fp32 masters"] == 4 * COUNT
    # of the output layer also the gradient in bf16, which waits for that of the tied embedding
    assert found["gradients"] == 4 * COUNT + 2 * HEAD
    assert found["optimizer"] == 8 * COUNT


def test_in_fp32_the_weights_are_the_masters():
    found = parts("sft", "train.precision=fp32")
    assert "fp32 masters" not in found
    states = found["policy weights"] + found["gradients"] + found["optimizer"]
    assert states == 16 * COUNT + 4 * HEAD


def test_processes_that_share_tokens_divide_the_activations_of_a_long_row():
    rows = Rows(longest=1 << 16, mean=float(1 << 16))
    words = ("launch.processes=4", "train.gradient_checkpointing=true")
    found = {}
    for context in (1, 4):
        cfg = training("sft", *words, f"launch.context_parallel={context}")
        found[context] = estimate_memory("sft", cfg, rows, GPU, processes=4).phases["update"]
    assert found[4]["activations"] == pytest.approx(found[1]["activations"] / 4, rel=0.01)
    assert found[4]["policy weights"] == found[1]["policy weights"]


def test_several_processes_are_told_to_share_tokens_where_a_row_does_not_fit():
    rows = Rows(longest=1 << 20, mean=float(1 << 20))
    cfg = training("sft", "launch.processes=4", "train.gradient_checkpointing=true")
    small = replace(GPU, total_bytes=8 * 10**9)
    found = cheapest_overrides("sft", cfg, rows, small, processes=4)
    assert "launch.context_parallel=4" in [override.text for override in found]
    alone = cheapest_overrides("sft", training("sft"), rows, small)
    assert not [override for override in alone if "context_parallel" in override.text]


@pytest.mark.parametrize(("optimizer", "each"), [("adamw", 8), ("adamw_8bit", 2.03)])
def test_bytes_of_the_optimizer(optimizer, each):
    assert parts("sft", f"train.optimizer={optimizer}")["optimizer"] == int(each * COUNT)


def test_an_adapter_leaves_the_weights_in_the_compute_type():
    found = parts("sft", "adapter=lora", "train.precision=bf16", "adapter.rank=4")
    adapter = 4 * 4 * (4 * 2 * 128 + 3 * (128 + 384))
    assert found["optimizer"] == 8 * adapter
    assert found["policy weights"] == 2 * COUNT + 2 * adapter
    assert found["gradients"] < COUNT


def test_a_stored_reference_needs_nothing_and_a_copy_needs_its_weights():
    assert "reference weights" not in parts("dpo")
    assert parts("dpo", "model.reference=copy")["reference weights"] == 2 * COUNT
    assert parts("dpo", "model.reference=copy", "adapter=lora")["reference weights"] < COUNT / 2


def test_bytes_of_the_cache_by_hand():
    """24 layers of 2 key heads of 64 in bf16: 12,288 bytes a token."""
    sizes = {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "vocab_size": 9}
    sizes |= {"num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2}
    shape = shape_of("x", sizes)
    assert cache_bytes(shape, 2, 64, 1000) == 12_288 * 64 * 1024  # a multiple of 32


def test_more_slots_and_longer_responses_need_a_larger_cache():
    words = ("train.batch_size=64", "sampling.max_new_tokens=96")
    rows = replace(ROWS, longest_prompt=32)
    found = {
        slots: parts("ppo", *words, f"max_num_seqs={slots}", phase="rollout", rows=rows)["KV cache"]
        for slots in (4, 8)
    }
    assert found == {4: 2 * 4 * 128 * 2 * 4 * 128, 8: 2 * 4 * 128 * 2 * 8 * 128}


def test_processes_share_the_memory_of_a_cpu_and_not_of_gpus():
    cfg = training("sft")
    one, two = (estimate_memory("sft", cfg, ROWS, DEVICE, processes=n) for n in (1, 2))
    assert two.usable == one.usable // 2
    one, two = (estimate_memory("sft", cfg, ROWS, GPU, processes=n) for n in (1, 2))
    assert two.usable == one.usable


@pytest.mark.parametrize("stage", TRAINS)
@pytest.mark.parametrize("device", [DEVICE, GPU], ids=["cpu", "cuda"])
def test_every_stage_has_a_peak_among_its_phases(stage, device):
    found = estimate_memory(stage, training(stage), ROWS, device)
    assert {"load", "update", "save"} <= found.phases.keys()
    assert ("rollout" in found.phases) == (stage == "ppo")
    assert found.peak[1] == max(found.total(phase) for phase in found.phases)
    assert found.fits


def test_generate_and_evaluate_have_an_estimate():
    generate = estimate_memory("generate", config("generate", "prompt=x"), ROWS, DEVICE)
    assert generate.phases["rollout"]["KV cache"] > 0
    evaluate = estimate_memory("evaluate", config("evaluate", "data=tiny"), ROWS, DEVICE)
    assert "evaluate" in evaluate.phases


def test_each_override_is_a_key_and_saves_what_it_says():
    rows, small = Rows(longest=512, mean=512.0), replace(DEVICE, total_bytes=10**9)
    cfg = training("ppo")
    before = estimate_memory("ppo", cfg, rows, small)
    found = cheapest_overrides("ppo", cfg, rows, small)
    assert 0 < len(found) <= 3
    for one in found:
        after = estimate_memory("ppo", training("ppo", *one.text.split()), rows, small)
        assert before.peak[1] - after.peak[1] == one.saves_bytes > 0
        assert after.fits == one.fits


def test_a_pass_is_as_large_as_today_where_it_fits_and_smaller_where_memory_is_short():
    cfg = training("sft")
    many = Rows(longest=1024, mean=1024.0)
    assert limit.choose_tokens(cfg, many, DEVICE, 1)[0] == 4096
    assert limit.choose_tokens(cfg, many, GPU, 1)[0] == 32768
    tokens, said = limit.choose_tokens(cfg, many, replace(DEVICE, total_bytes=900 * 10**6), 1)
    assert 1024 <= tokens < 4096
    assert "memory" in said
    given = training("sft", "train.micro_batch_tokens=77")
    assert limit.choose_tokens(given, many, DEVICE, 1) == (77, "train.micro_batch_tokens")


def test_what_cannot_fit_is_refused_with_the_table():
    with pytest.raises(OutOfMemory, match="does not fit") as refused:
        limit.choose_tokens(training("sft"), ROWS, replace(DEVICE, total_bytes=10**8), 1)
    assert "fp32 masters" in str(refused.value)


@pytest.mark.parametrize(
    "argv",
    [["sft", "model=tiny", "data=tiny", "output_dir=out"], ["generate", "model=tiny", "prompt=x"]],
)
def test_a_model_that_is_too_large_is_refused_before_it_is_loaded(argv, capsys, monkeypatch):
    monkeypatch.setattr(cli, "_runner", lambda command: pytest.fail("it was loaded"))
    assert cli.main([*argv, "device_memory=100MB"]) == OutOfMemory.exit_code
    assert "does not fit" in capsys.readouterr().err


def test_the_table_has_all_phases_parts_and_measured_peaks():
    found = estimate_memory("ppo", training("ppo"), ROWS, GPU)
    lines = format_estimate(found, GPU, {"update": 10**9}).splitlines()
    assert lines[0].startswith("memory:")
    assert lines[1].split()[1:] == list(found.phases)
    for name in {part for of in found.phases.values() for part in of}:
        assert any(line.startswith(name) for line in lines), name
    assert any(line.startswith("measured") for line in lines)
    assert "peak" in lines[-1]


def test_a_run_writes_the_peak_of_each_phase():
    words = ["sft", "model=tiny", "data=tiny", "train.max_steps=1", "output_dir=out"]
    assert cli.main(words) == 0
    with open("out/manifest.json", encoding="utf-8") as file:
        manifest = json.load(file)
    peaks = manifest["peak_memory_bytes_by_phase"]
    assert {"load", "update", "evaluate", "save"} <= peaks.keys()
    assert max(peaks.values()) <= 1.02 * manifest["peak_memory_bytes"]  # read before the save
