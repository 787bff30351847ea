"""What distillation refuses, each with one line."""

import pytest

from rlhf_cli import cli
from tests.stages.distill.conftest import words_of

URL = "http://127.0.0.1:9"

REFUSED = [
    (["teacher="], "teacher: none given"),
    (["teacher=adapter_off"], "teacher: got adapter_off with adapter.kind=none"),
    (["teacher=adapter_of"], "teacher: got adapter_of, which is no folder here"),
    (["on_policy_fraction=0.3"], "Try on_policy_fraction=0.25"),
    (["on_policy_fraction=1.5"], "on_policy_fraction: got 1.5"),
    (["jsd_beta=0.2"], "jsd_beta: given, but only divergence=jsd reads it"),
    (["divergence=jsd", "jsd_beta=1"], "jsd_beta: got 1"),
    (["sft_coef=1"], "sft_coef: given, but only on_policy_fraction below 1 reads it"),
    (["on_policy_fraction=0", "sampling.top_k=3"], "sampling.top_k: given"),
    (["on_policy_fraction=0", "samples_per_prompt=2"], "samples_per_prompt: given"),
    (["on_policy_fraction=0.5", "data.format=prompt"], "data.format: got prompt"),
    (["on_policy_fraction=0", "data.format=text"], "data.format: got text"),
    (["samples_per_prompt=2", "temperature=0"], "samples_per_prompt: got 2"),
    (["adapter=lora", "teacher=adapter_off", "teacher_quant=nf4"], "teacher_quant: given"),
    ([f"teacher={URL}", "divergence=forward_kl"], "divergence: got forward_kl, but a server"),
    ([f"teacher={URL}", "temperature=0.7"], "sampling.temperature: got 0.7, but a server"),
    ([f"teacher={URL}", "divergence_temperature=2"], "divergence_temperature: got 2"),
    ([f"teacher={URL}", "on_policy_fraction=0.5"], "on_policy_fraction: got 0.5, but a server"),
    ([f"teacher={URL}", "sampling.top_p=0.9"], "sampling.top_p: got 0.9, but a server"),
    ([f"rollout.server={URL}", "rollout.correction_cap=2"], "rollout.correction_cap: given with a"),
    (["launch.context_parallel=2"], "launch.context_parallel: got 2; distill decodes"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=lambda value: " ".join(value))
def test_settings_that_are_refused(words, message, models, files, capsys):
    assert cli.main(words_of(models, *words)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert any(message in line for line in lines), lines


def test_a_teacher_with_another_vocabulary_is_refused(models, files, capsys):
    assert cli.main(words_of(models, f"teacher={models}/other")) != 0
    assert "teacher: " in (error := capsys.readouterr().err)
    assert "has another vocabulary (1025 tokens, the policy 1024)" in error


def test_a_reward_model_is_no_teacher(models, files, tmp_path, capsys):
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path / "scores"
    model = AutoModelForSequenceClassification.from_pretrained(models / "teacher", num_labels=1)
    model.save_pretrained(folder)
    assert cli.main(words_of(models, f"teacher={folder}")) == 2
    assert "teacher: got" in capsys.readouterr().err


def test_rows_without_completions_are_refused_where_they_are_needed(models, files, capsys):
    assert cli.main(words_of(models, "data=prompts.jsonl", "on_policy_fraction=0.5")) == 3
    assert "prompts.jsonl" in capsys.readouterr().err
