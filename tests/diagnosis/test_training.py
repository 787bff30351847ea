"""Rules about runs on rows, and about every run."""

import math

import pytest

from rlhf_cli.diagnosis.diagnose import diagnose
from tests.diagnosis.runs import STEPS, alarms, find, make_record, noise

FALLING = {"loss": lambda step: 1 + 2 / step + 0.05 * noise(step), "lr": 1e-4, "grad_norm": 0.5}


def falling(**more):
    return make_record("sft", FALLING, evaluations={"loss": [3.0, 1.2]}, **more)


def test_a_healthy_run_has_no_alarm():
    assert alarms(falling(config={"train": {"lr": 1e-4, "max_grad_norm": 1.0}})) == []


def test_a_rising_loss_is_a_rate_that_is_too_high():
    record = make_record("sft", {"loss": lambda step: 2 + step / 10, "lr": 1e-2})
    found = find(record, "loss.rose")
    assert found.severity == "problem"
    assert found.advice[0] == "train.lr=0.001"
    assert found.numbers["last"] > found.numbers["first"]


def test_a_flat_loss_is_a_rate_that_is_too_low():
    record = make_record("sft", {"loss": lambda step: 2 + 0.1 * noise(step), "lr": 1e-9})
    assert find(record, "loss.flat").advice[0] == "train.lr=1e-08"


def test_a_flat_training_loss_with_a_lower_held_out_loss_is_none():
    curves = {"loss": lambda step: 2 + 0.1 * noise(step), "lr": 1e-4}
    assert alarms(make_record("sft", curves, evaluations={"loss": [2.0, 1.8]})) == []


def test_overfitting_names_the_step_of_the_lowest_loss():
    values = [3.0, 1.5, 1.2, 1.6, 2.0]
    found = find(make_record("sft", FALLING, evaluations={"loss": values}), "loss.overfit")
    assert found.severity == "problem"
    assert found.numbers["best_step"] == 20
    assert found.advice[0] == "train.max_steps=20"


def test_two_evaluations_are_enough_to_see_overfitting():
    found = find(make_record("sft", FALLING, evaluations={"loss": [1.0, 1.05]}), "loss.overfit")
    assert found.severity == "warning"
    assert "train.eval_steps" in found.advice[1]


def test_a_loss_of_nearly_zero_is_recitation():
    record = make_record("sft", {"loss": lambda step: 2 * 0.5**step, "lr": 1e-3})
    assert find(record, "loss.near_zero").severity == "problem"


def test_a_growing_gradient_norm_is_unstable():
    curves = {**FALLING, "grad_norm": lambda step: 0.1 * 1.2**step}
    assert "gradient.grew" in alarms(make_record("sft", curves))


def test_gradients_that_are_always_clipped_are_only_noted():
    curves = {**FALLING, "grad_norm": 5.0}
    record = make_record("sft", curves, config={"train": {"max_grad_norm": 1.0}})
    assert find(record, "gradient.clipped").severity == "note"
    assert alarms(record) == []


def test_a_spike_is_named_with_its_rows():
    rows = [f"a.jsonl:{line}" for line in range(7)]
    spikes = [{"step": 9, "loss": 8.0, "before": 1.0, "rows": rows}]
    found = find(falling(spikes=spikes), "loss.spikes")
    assert found.severity == "warning"
    assert "a.jsonl:0" in found.sentence
    assert "2 more" in found.sentence


@pytest.mark.parametrize(
    ("status", "error", "severity"),
    [
        ("complete", "", "ok"),
        ("running", "", "note"),
        ("interrupted", "SIGTERM", "warning"),
        ("failed", "NonFinite: step 3: loss nan", "problem"),
    ],
)
def test_how_a_run_ended(status, error, severity):
    assert find(falling(status=status, error=error), "run.ended").severity == severity


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("NonFinite: step 3: loss nan", "train.lr=3e-05"),
        ("NonFinite: step 3: above kl_limit=100", "kl_coef=0.05"),
        ("OutOfMemory: out of memory", "train.gradient_checkpointing=true"),
    ],
)
def test_an_error_has_advice(error, advice):
    stage = "ppo" if "kl_limit" in error else "sft"
    record = make_record(stage, FALLING, status="failed", error=error)
    assert advice in find(record, "run.ended").advice


def test_a_run_without_steps_says_so():
    record = make_record("sft", {}, steps=0, status="failed", error="ModelError: no model")
    assert find(record, "run.steps").severity == "note"
    assert "run.ended" in alarms(record)


def test_few_steps_are_noted():
    assert find(make_record("sft", FALLING, steps=4), "run.steps").severity == "note"


def test_values_that_are_not_finite_name_the_first_step():
    curves = {**FALLING, "loss": lambda step: math.nan if step > 30 else 1.0}
    assert find(make_record("sft", curves), "run.finite").numbers["first"] == 31


def test_a_rate_that_still_rises_at_the_end():
    curves = {**FALLING, "lr": lambda step: 1e-6 * step}
    found = find(make_record("sft", curves, config={"train": {"warmup_steps": 400}}), "run.warmup")
    assert found.severity == "warning"
    assert found.advice == ("train.warmup_steps=2",)


def test_a_constant_rate_does_not_rise():
    assert find(falling(), "run.warmup").severity == "ok"


@pytest.mark.parametrize(("last", "severity"), [(900, "ok"), (500, "note")])
def test_speed(last, severity):
    curve = {"tokens_per_second": lambda step: 1000 + noise(step) if step < 20 else last}
    assert find(make_record("sft", {**FALLING, **curve}), "run.speed").severity == severity


@pytest.mark.parametrize(("peak", "severity"), [(10e9, "ok"), (23.5e9, "warning")])
def test_memory_near_the_limit(peak, severity):
    record = make_record(
        "sft", {**FALLING, "memory_bytes": peak}, manifest={"device_memory_bytes": 24e9}
    )
    assert find(record, "run.memory").severity == severity


@pytest.mark.parametrize(
    ("data", "code", "severity"),
    [
        ({"rows": 100, "kept": 100}, "data.refused", "ok"),
        (
            {"rows": 100, "kept": 95, "refused": {"empty": {"rows": 5}}},
            "data.refused",
            "note",
        ),
        ({"rows": 100, "kept": 60, "malformed": 40}, "data.refused", "warning"),
        ({"rows": 100, "kept": 90, "held_out": 10}, "data.refused", "ok"),
        ({"kept": 100, "cut": {"response end": {"rows": 50}}}, "data.truncated", "warning"),
        ({"kept": 100, "cut": {"response end": {"rows": 1}}}, "data.truncated", "note"),
        ({"tokens": 1000, "trained_tokens": 5}, "data.trained", "warning"),
        ({"tokens": 1000, "trained_tokens": 500}, "data.trained", "ok"),
        ({"examples": 200, "distinct": 1}, "data.distinct", "problem"),
        ({"examples": 200, "distinct": 50}, "data.distinct", "warning"),
        ({"examples": 200, "distinct": 190}, "data.distinct", "ok"),
    ],
)
def test_counts_of_rows(data, code, severity):
    assert find(falling(data=data), code).severity == severity


@pytest.mark.parametrize(("last", "codes"), [("", ["data.empty_answers"]), ("Hi.", [])])
def test_fixed_prompts_that_are_answered_with_nothing(last, codes):
    rows = [
        {"step": 0, "prompt": "Hello?", "response": "", "tokens": 1},
        {"step": STEPS, "prompt": "Hello?", "response": last, "tokens": 1},
    ]
    record = make_record("dpo", {}, config={"template": "auto"}, fixed_samples=rows)
    found = [one for one in diagnose(record) if one.code == "data.empty_answers"]
    assert [one.code for one in found] == codes
    assert all(one.advice == ("template=always",) for one in found)


def test_a_manifest_that_no_rule_can_read_is_a_note():
    record = falling(manifest={"data": {"rows": "many", "kept": 3}})
    codes = {one.code: one.severity for one in diagnose(record)}
    assert codes["unread.refused_rows"] == "note"
