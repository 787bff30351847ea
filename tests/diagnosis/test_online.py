"""Rules about runs of online dpo."""

import pytest

from rlhf_cli.diagnosis.diagnose import diagnose
from tests.diagnosis.runs import alarms, find, make_record, noise

ONLINE = {
    "loss": lambda step: 0.69 - 0.001 * step,
    "grad_norm": lambda step: 1 + 0.1 * noise(step),
    "objective/scores": lambda step: 1 + 0.05 * step + 0.1 * noise(step),
    "objective/score_std": 1.0,
    "objective/ties": 0.2,
    "rewards/margins": 0.001,
    "rewards/chosen": -2.0,
    "rewards/rejected": -2.0,
    "rewards/accuracies": 1.0,
    "logps/chosen": -30.0,
    "logps/rejected": -30.0,
    "tokens/response_length": 40.0,
    "tokens/eos_fraction": 0.9,
    "rollout/distinct": 1.0,
    "lr": 1e-5,
}
CONFIG = {"online": True, "beta": 0.1, "samples_per_prompt": 2, "sampling": {"max_new_tokens": 64}}


def online(curves=None, config=None):
    return make_record("dpo", {**ONLINE, **(curves or {})}, config={**CONFIG, **(config or {})})


def test_a_healthy_run_has_no_alarm():
    """Pairs of each step are new: neither loss nor margin need move."""
    assert alarms(online()) == []
    assert find(online(), "dpo.score").severity == "ok"


def test_the_same_curves_of_a_run_on_a_file_are_judged_by_other_rules():
    assert {"dpo.stuck", "dpo.displacement"} & {*alarms(online(config={"online": False}))}


@pytest.mark.parametrize(
    ("curves", "code"),
    [
        ({"objective/scores": lambda step: 5 - 0.1 * step}, "dpo.score_fell"),
        ({"objective/scores": lambda step: 5 + noise(step)}, "dpo.score_flat"),
        ({"objective/ties": 0.6}, "dpo.ties"),
        ({"tokens/eos_fraction": 0.0}, "ppo.eos"),
        ({"rollout/distinct": 0.1}, "ppo.distinct"),
    ],
)
def test_what_goes_wrong_is_named(curves, code):
    assert code in alarms(online(curves))


def test_advice_is_in_keys_of_dpo():
    found = find(online({"rollout/distinct": 0.1}), "ppo.distinct")
    assert "beta=0.2" in found.advice


def test_a_constant_reward_explains_the_ties():
    codes = [
        one.code for one in diagnose(online({"objective/score_std": 0.0, "objective/ties": 1.0}))
    ]
    assert "ppo.constant_reward" in codes
    assert "dpo.ties" not in codes
