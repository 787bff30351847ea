"""Our side of the comparison of PPO with TRL: it learns from responses that it is given."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.parity.ppo import moved
from benchmarks.parity.ppo_ours import Learned, learn
from benchmarks.parity.ppo_start import Models
from benchmarks.parity.start import small_models
from rlhf_cli.data.prompts import PromptEncoder
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.tokenizer import load_tokenizer

TEXTS = ("Say tea", "Say rain twice")
RESPONSES = [[40, 41, 1], [50, 51, 52, 53]]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    language, reward = small_models(tmp_path_factory.mktemp("models"))
    return Models(language, language, reward, reward)


def learned(out: Path, models: Models, prompts: dict[tuple[int, ...], str]) -> Learned:
    rollout = {"prompts": [list(ids) for ids in prompts], "responses": RESPONSES}
    settings = [
        "template=never", "compat=trl", "value=model", f"reward.model={models.reward}",
        "batch_size=2", "max_steps=1", "max_new_tokens=4", "lr=1e-3", "data.eval=none",
    ]  # fmt: skip
    names = ("tokens/response_length", "tokens/eos_fraction")
    return learn(out, models.policy, [rollout], prompts, settings, names)


@pytest.fixture
def prompts(models):
    encoder = PromptEncoder(load_tokenizer(ModelConfig(path=str(models.policy))), as_message=False)
    return {tuple(encoder.encode(text)): text for text in TEXTS}


def test_the_responses_are_those_given(tmp_path, models, prompts):
    found = learned(tmp_path / "run", models, prompts)
    assert found.metrics == {"tokens/response_length": [3.5], "tokens/eos_fraction": [0.5]}
    [experience] = found.experience
    assert (experience.advantages != 0).sum(1).tolist() == [3, 4]


def test_other_prompts_are_refused(tmp_path, models, prompts):
    others = {(7, *ids): text for ids, text in prompts.items()}
    with pytest.raises(SystemExit, match="same token ids"):
        learned(tmp_path / "run", models, others)


def test_parameters_are_compared_by_name_and_with_how_far_they_went(models):
    names = {"policy.": models.policy, "value_model.": models.value}
    ours = {"policy.": "model.", "value_model.": "value_model.model.model."}
    theirs, mine = {}, {}
    for there, folder in names.items():
        for name, before in load_file(folder / "model.safetensors").items():
            theirs[there + name] = before + 0.5
            mine[ours[there] + name] = before + 0.25
    found = moved(Learned({}, [], mine), models, theirs)
    assert found["parameters_largest"] == pytest.approx(0.25, abs=1e-6)
    assert found["parameters_changed"] == pytest.approx(0.5, abs=1e-6)
    assert found["change_relative"] == pytest.approx(0.5, abs=1e-6)
    theirs["policy.lm_head.weight"] += torch.tensor(9.0)
    assert moved(Learned({}, [], mine), models, theirs)["parameters_largest"] > 9
