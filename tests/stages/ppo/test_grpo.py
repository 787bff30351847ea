"""`rlhf grpo`: PPO's runner with defaults of its own."""

import json
from pathlib import Path

import pytest

from rlhf_cli import cli
from rlhf_cli.config.schema import options
from rlhf_cli.stages.grpo.config import GRPOConfig
from rlhf_cli.stages.ppo.config import PPOConfig
from tests.stages.ppo.conftest import words_of
from tests.stages.ppo.test_run import require_equal

OWN = {
    "advantage": "grpo",
    "samples_per_prompt": 8,
    "kl_in": "loss",
    "kl_estimator": "k3",
    "kl_coef": 0.04,
    "ppo_epochs": 1,
    "sampling.temperature": 1.0,
}
"""Keys whose default differs from that of ppo."""


def test_it_has_the_keys_of_ppo_and_defaults_of_its_own():
    ours, theirs = options(GRPOConfig), options(PPOConfig)
    assert ours.keys() == theirs.keys()
    assert {k: ours[k].default for k in ours if ours[k].default != theirs[k].default} == OWN
    assert not GRPOConfig().step_problems()


def grpo(*words, out="run"):
    return ["grpo", *words_of(*words, out=out)[1:]]


def test_it_runs_as_ppo_with_its_defaults(ppo, files):
    words = ["samples_per_prompt=2", "max_steps=2", "ppo_epochs=1"]
    defaults = [f"{key}={value}" for key, value in OWN.items() if key not in words[0]]
    expected = ppo(*defaults, *words, out="ppo")
    assert cli.main(grpo(*words, out="grpo")) == 0
    lines = [json.loads(line) for line in Path("grpo/metrics.jsonl").read_text().splitlines()]
    require_equal(expected, [line for line in lines if "loss" in line])


def test_its_result_is_evaluated(files, capsys):
    words = ["samples_per_prompt=2", "max_steps=1", "data.eval=prompts.jsonl"]
    assert cli.main(grpo(*words)) == 0
    assert cli.main(["evaluate", "run", "output=found.json", "precision=fp32"]) == 0
    found = {row["metric"] for row in json.loads(Path("found.json").read_text())["results"]}
    assert found == {"score", "kl", "response_length", "eos_fraction"}


@pytest.mark.parametrize(
    ("words", "begins"),
    [
        (["advantage=gae"], "advantage: got gae; grpo trains no value model"),
        (["vf_coef=0.5"], "vf_coef: given, but only advantage=gae reads it"),
        (["value_lr=0.5"], "value_lr: given, but only advantage=gae reads it"),
        (["samples_per_prompt=1"], "samples_per_prompt: got 1 with advantage=grpo"),
        (["data.format=preference"], "data.format: got preference; grpo takes prompts"),
        (["model.reference=none"], "model.reference: got none; grpo computes the KL"),
    ],
)
def test_a_contradiction_is_refused_in_one_line(words, begins, files, capsys):
    assert cli.main(grpo(*words)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {begins}")
