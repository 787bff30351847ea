"""PPOTrainer in a loop of one's own."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from rlhf_cli.errors import ConfigError, DataError
from rlhf_cli.launch.config import LaunchConfig
from rlhf_cli.models.config import ComparedModelConfig
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.runs import artifact
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.ppo.trainer import PPOTrainer
from rlhf_cli.train.config import TrainConfig

PROMPTS = ["Say tea", "Say rain", "Say gold", "Say jazz"]
CFG = PPOConfig(
    model=ComparedModelConfig(path="tiny"),
    sampling=SamplingConfig(max_new_tokens=8),
    train=TrainConfig(lr=3e-3, precision="fp32"),
    template="never",
    ppo_epochs=2,
    minibatches=2,
    kl_coef=0.001,
)


@pytest.fixture
def trainer(tmp_path):
    return PPOTrainer(CFG, tmp_path / "mine")


def test_the_score_rises_and_the_result_loads(trainer, tmp_path):
    scores = []
    for _ in range(12):
        responses = trainer.generate(PROMPTS * 2)
        given = [one.text.count("e") / 4 for one in responses]
        scores.append(sum(given))
        metrics = trainer.step(PROMPTS * 2, responses, given)
    assert sum(scores[-3:]) > sum(scores[:3])
    assert metrics["objective/scores"] == pytest.approx(scores[-1] / 8)
    lines = (tmp_path / "mine" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1]) == {"step": 12, **metrics}
    AutoModelForCausalLM.from_pretrained(trainer.save())


def test_a_step_equals_that_of_the_command(ppo, files):
    """The same prompts, responses and scores give the same losses as `rlhf ppo`."""
    once = ["max_steps=1", "ppo_epochs=1", "minibatches=1", "data.shuffle=false", "kl_coef=0.001"]
    (line,) = ppo(*once, "reward.function=judge.py:length", "lr=3e-3", "data.split=train[:4]")
    rows = (files / "prompts.jsonl").read_text().splitlines()[:4]
    prompts = [json.loads(row)["prompt"] for row in rows]
    sampling = replace(CFG.sampling, temperature=0.7)
    trainer = PPOTrainer(replace(CFG, sampling=sampling, ppo_epochs=1, minibatches=1), files / "my")
    trainer.generated = 4  # the command's first rollout is number 1
    responses = trainer.generate(prompts)
    metrics = trainer.step(prompts, responses, [float(len(one.text)) for one in responses])
    for name in ("objective/scores", "tokens/response_length", "loss/value", "loss", "grad_norm"):
        assert metrics[name] == pytest.approx(line[name], rel=1e-5), name


def test_the_loop_in_the_docs_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[3] / "docs" / "ppo.md").read_text()
    [program] = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    exec(compile(program, "ppo.md", "exec"), {})
    assert (tmp_path / "runs" / "mine" / "model" / "config.json").is_file()


def test_text_responses_get_an_end_token(trainer):
    metrics = trainer.step(PROMPTS, ["tea"] * 4, [1.0, 0.0, 0.5, 0.2])
    assert metrics["tokens/eos_fraction"] == 1
    assert math.isfinite(metrics["loss"])


@pytest.mark.parametrize(
    ("responses", "scores", "told"),
    [
        (["a"] * 3, [1.0] * 4, "got 4 prompts, 3 responses and 4 scores"),
        (["a"] * 4, [1.0, float("nan"), 0, 0], "scores: got one that is not finite"),
        (["a " * 600] * 4, [1.0] * 4, "more than the model's 512 positions"),
    ],
)
def test_bad_arguments_are_refused_before_an_update(trainer, responses, scores, told):
    with pytest.raises(DataError, match=told):
        trainer.step(PROMPTS, responses, scores)
    assert trainer.loop.step == 0


def test_a_count_that_minibatches_do_not_divide_is_refused(trainer):
    with pytest.raises(DataError, match="got 3 prompts; need a multiple of 2"):
        trainer.step(PROMPTS[:3], ["a"] * 3, [1.0] * 3)


def test_messages_are_accepted_and_recorded_in_the_artifact(trainer):
    chat = [{"role": "user", "content": "Say tea"}]
    assert len(trainer.generate([chat])) == 1
    trainer.step([chat] * 2, ["a", "b"], [1.0, 0.0])
    assert artifact.read(trainer.save())["trained_on"] == "chat"
    with pytest.raises(DataError, match=r"prompts\[1\]\[0\]: got .*need an object with role"):
        trainer.generate([chat, [{"text": "tea"}]])


def test_sharding_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"launch\.shard: got full; PPOTrainer is one process"):
        PPOTrainer(replace(CFG, launch=LaunchConfig(shard="full")), tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_reused_logprobs_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="rollout_logprobs: got reuse; "):
        PPOTrainer(replace(CFG, rollout_logprobs="reuse"), tmp_path / "mine")


def test_a_contradiction_is_refused_before_a_model_is_loaded(tmp_path):
    with pytest.raises(ConfigError, match="samples_per_prompt: got 1 with advantage=grpo"):
        PPOTrainer(replace(CFG, advantage="grpo"), tmp_path / "mine")
