"""Runs of distillation on small random models."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from rlhf_cli import cli
from rlhf_cli.train.metrics import read_metrics
from tests.helpers import without_machine
from tests.stages.distill.conftest import words_of


def deterministic(out):
    """The lines of a run without what tells of the machine."""
    return [
        {name: value for name, value in line.items() if not name.startswith("time/")}
        for line in without_machine(read_metrics(out / "metrics.jsonl"))
    ]


ROWS = ("divergence=forward_kl", "on_policy_fraction=0", "data.eval=pairs.jsonl")
MIXED = ("divergence=jsd", "on_policy_fraction=0.5", "data.eval=pairs.jsonl")
PROMPTS = ("data=prompts.jsonl", "data.eval=prompts.jsonl")
LORA = ("adapter=lora", "adapter.rank=4")


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(ROWS, id="rows"),
        pytest.param(PROMPTS, id="prompts alone"),
        pytest.param(MIXED, id="mixed", marks=pytest.mark.slow),
        pytest.param((*LORA, "lr=5e-2"), id="adapter", marks=pytest.mark.slow),
    ],
)
def test_the_divergence_falls(distill, words):
    lines = distill("lr=2e-2", *words, "max_steps=12", "train.schedule=constant")
    loss = [line["loss"] for line in lines if "loss" in line]
    assert sum(loss[-3:]) < 0.9 * sum(loss[:3])
    if "eval/loss" in lines[0]:
        assert lines[-1]["eval/loss"] < 0.9 * lines[0]["eval/loss"]


def test_a_student_that_is_its_teacher_has_nothing_to_learn(distill, models, files):
    words = ("data.eval=pairs.jsonl", "train.weight_decay=0")
    lines = distill(f"model={models}/teacher", *words)
    steps = [line for line in lines if line["step"]]
    # the divergence of equal distributions is a sum of rounding
    assert all(abs(line["loss"]) < 1e-6 and line["grad_norm"] < 1e-5 for line in steps)
    assert lines[-1]["eval/agreement"] == 1


def test_the_base_of_a_new_adapter_as_teacher(distill):
    [first, *_] = distill(*LORA, "teacher=adapter_off", "max_steps=1")
    assert first["loss"] == 0  # a new adapter adds nothing


SHARES = [
    pytest.param("1", marks=pytest.mark.slow),
    "0.5",
    pytest.param("0", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("share", SHARES)
def test_micro_batches_do_not_change_the_steps(share, distill, files):
    words = (f"on_policy_fraction={share}", "data.eval=pairs.jsonl")
    whole = distill(*words, "train.micro_batch_tokens=4096", out="whole")
    parts = distill(*words, "train.micro_batch_tokens=1", out="parts")
    for a, b in zip(whole, parts, strict=True):
        for name in {*a} & {"loss", "grad_norm", "eval/loss", "eval/forward_kl"}:
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-6), name


@pytest.mark.slow
def test_recomputed_activations_give_the_same_steps(distill):
    lora = (*LORA, "teacher=adapter_off", "lr=1e-1")
    plain = distill(*lora, out="plain")
    again = distill(*lora, "train.gradient_checkpointing=true", out="again")
    for a, b in zip(plain, again, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4, abs=1e-7)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("share", SHARES)
def test_a_resumed_run_equals_an_unbroken_one(share, distill, files):
    words = [f"on_policy_fraction={share}", "max_steps=4", "train.save_steps=2"]
    words += ["data.eval=pairs.jsonl"] + ([] if share == "0" else ["sample_steps=1"])
    distill(*words, out="unbroken")
    unbroken, broken = files / "unbroken", files / "broken"
    shutil.copytree(unbroken, broken)
    for gone in ("model", "checkpoints/step-000004"):
        shutil.rmtree(broken / gone)
    manifest = broken / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"complete"', '"running"'))
    distill(*words, out="broken")
    assert deterministic(unbroken) == deterministic(broken)
    if share != "0":
        assert (unbroken / "samples.jsonl").read_text() == (broken / "samples.jsonl").read_text()
    for name in ("weights", "optimizer"):
        one, two = (
            load_file(out / "checkpoints" / "step-000004" / f"{name}.safetensors")
            for out in (unbroken, broken)
        )
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_step_has_the_share_of_completions_that_was_asked_for(distill, files):
    line = distill("on_policy_fraction=0.25", "sft_coef=0.5", "samples_per_prompt=2")[-1]
    assert {"divergence/student", "divergence/data", "loss/sft", "policy/entropy"} <= {*line}
    rows = [json.loads(row) for row in (files / "run" / "samples.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows} == {1, 3}
    assert all(row["divergence"] > 0 and row["tokens"] <= 8 for row in rows)
    assert not any("score" in row for row in rows)


def test_samples_have_the_divergence_that_the_loss_is_made_of(distill, files):
    lines = distill("sample_steps=1", "train.micro_batch_tokens=30")
    rows = [json.loads(row) for row in (files / "run" / "samples.jsonl").read_text().splitlines()]
    first = [row for row in rows if row["step"] == 1]
    total = sum(row["divergence"] for row in first)
    assert len(first) == 4
    assert total / sum(row["tokens"] for row in first) == pytest.approx(lines[0]["loss"], rel=1e-5)


@pytest.mark.parametrize("rows", ["pairs", pytest.param("prompts", marks=pytest.mark.slow)])
def test_evaluate_measures_as_the_run_did(rows, distill, files, capsys):
    words = (f"data.eval={rows}.jsonl", "adapter=lora", "adapter.rank=4", "lr=1e-1")
    lines = distill(*words, "teacher=adapter_off")
    capsys.readouterr()
    assert cli.main(["evaluate", "run", "output=found.json", "precision=fp32"]) == 0
    found = json.loads((files / "found.json").read_text())["results"]
    table = {one["metric"]: one["value"] for one in found}
    names = {"loss", "reverse_kl", "forward_kl", "agreement"}
    names |= {"response_length", "eos_fraction"} if rows == "prompts" else set()
    assert names <= {*table}
    for name in names:
        assert table[name] == pytest.approx(lines[-1][f"eval/{name}"], rel=1e-3), name


def test_a_dry_run_counts_the_teacher(distill, models, files, capsys):
    assert cli.main([*words_of(models, "on_policy_fraction=0.5"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "teacher" in shown
    assert "2 responses of at most 8 tokens and 2 completions, 1 update" in shown


@pytest.mark.parametrize("quant", ["nf4", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_quantized_teacher(quant, distill):
    pytest.importorskip("bitsandbytes")
    line = distill(f"teacher_quant={quant}", "max_steps=1")[-1]
    assert line["loss"] > 0
