"""Rules about rollouts and updates of ppo."""

import pytest

from rlhf_cli.diagnosis.rollouts import symptoms
from tests.diagnosis.runs import alarms, find, make_record, noise

PPO = {
    "objective/scores": lambda step: 1 + 0.05 * step + 0.1 * noise(step),
    "objective/score_std": 1.0,
    "objective/kl": lambda step: 0.1 * step,
    "objective/kl_coef": 0.05,
    "policy/entropy": 1.0,
    "policy/clip_fraction": 0.05,
    "policy/approx_kl": 0.005,
    "tokens/response_length": 40.0,
    "tokens/eos_fraction": 0.9,
    "rollout/distinct": 1.0,
    "value/explained_variance": lambda step: 0.3 + 0.1 * noise(step),
    "lr": 1e-5,
}
CONFIG = {
    "kl_coef": 0.05,
    "kl_limit": 100.0,
    "advantage": "gae",
    "vf_coef": 0.1,
    "sampling": {"max_new_tokens": 64, "top_p": 1.0, "top_k": 0, "min_p": 0.0},
}


def ppo(curves=None, config=None, **more):
    return make_record(
        "ppo", {**PPO, **(curves or {})}, config={**CONFIG, **(config or {})}, **more
    )


def test_a_healthy_run_has_no_alarm():
    assert alarms(ppo()) == []


@pytest.mark.parametrize(
    ("curves", "code"),
    [
        ({"policy/entropy": lambda step: 1.0 * 0.9**step}, "ppo.reward_hacking"),
        (
            {"policy/entropy": lambda step: 0.9**step, "objective/scores": lambda step: -step},
            "ppo.entropy",
        ),
        ({"tokens/response_length": lambda step: 20 + step}, "ppo.length"),
        ({"tokens/response_length": lambda step: 50 - step}, "ppo.length"),
        ({"tokens/eos_fraction": lambda step: max(0.1, 1 - step / 40)}, "ppo.eos"),
        ({"tokens/eos_fraction": 0.0}, "ppo.eos"),
        ({"tokens/eos_fraction": lambda step: 1 - 0.009 * step}, "ppo.ends_less"),
        ({"tokens/eos_fraction": 0.3}, "ppo.cut_off"),
        ({"rollout/distinct": 0.1}, "ppo.distinct"),
        ({"objective/score_std": 0.0}, "ppo.constant_reward"),
        ({"objective/scores": lambda step: 5 - 0.1 * step}, "ppo.score_fell"),
        ({"objective/scores": lambda step: 5 + noise(step)}, "ppo.score_flat"),
        ({"objective/kl": lambda step: -2 + 0.1 * noise(step)}, "ppo.negative_kl"),
        ({"objective/kl": 30.0}, "ppo.far"),
        ({"value/explained_variance": -0.4}, "ppo.value"),
        ({"policy/clip_fraction": 0.6}, "ppo.large_updates"),
        ({"policy/approx_kl": 0.5}, "ppo.large_updates"),
        ({"rollout/mismatch": 0.3}, "ppo.mismatch"),
        ({"objective/constant_groups": 0.8}, "ppo.constant_groups"),
        ({"objective/teaching": 0.1}, "ppo.constant_groups"),
    ],
)
def test_each_symptom_is_named(curves, code):
    assert code in alarms(ppo(curves))


@pytest.mark.parametrize(
    "curves",
    [
        {"objective/kl": lambda step: 0.05 * noise(step)},
        {"tokens/response_length": lambda step: 40 + 0.5 * step},
        {"policy/entropy": lambda step: 1 - 0.01 * step},
        {"tokens/eos_fraction": lambda step: 0.9 - 0.002 * step},
        {"objective/constant_groups": 0.2},
        {"objective/teaching": 1.0},
        {"rollout/mismatch": 0.002},
        {"value/explained_variance": 0.02},
    ],
)
def test_small_changes_are_no_alarm(curves):
    assert alarms(ppo(curves)) == []


def test_a_score_that_rises_only_on_held_out_prompts_rose():
    curves = {"objective/scores": lambda step: 5 + noise(step)}
    assert alarms(ppo(curves, evaluations={"score": [4.0, 5.0]})) == []


def test_a_policy_that_stands_still_needs_a_higher_rate():
    curves = {"objective/scores": lambda step: 5 + noise(step), "policy/approx_kl": 1e-8}
    found = find(ppo(curves), "ppo.score_flat")
    assert "hardly moves" in found.cause
    assert found.advice == ("train.lr=0.0001",)


def test_truncated_sampling_is_the_cause_of_a_negative_kl():
    config = {"sampling": {"max_new_tokens": 64, "top_p": 0.8}}
    record = ppo({"objective/kl": lambda step: -2 + 0.1 * noise(step)}, config)
    found = find(record, "ppo.negative_kl")
    assert "sampling.top_p=0.8" in found.cause
    assert found.advice == ("sampling.top_p=1",)
    assert find(record, "ppo.truncated_sampling") is None, "named as the cause"
    assert find(ppo(config=config), "ppo.truncated_sampling").severity == "warning"


def test_reused_log_probs_that_differ_are_the_cause_of_a_negative_kl():
    curves = {"objective/kl": lambda step: -2 + 0.1 * noise(step), "rollout/mismatch": 0.5}
    found = find(ppo(curves, {"rollout_logprobs": "reuse"}), "ppo.negative_kl")
    assert found.advice == ("rollout_logprobs=recompute",)


def test_no_penalty_is_the_cause_of_a_large_kl():
    found = find(ppo({"objective/kl": 60.0, "objective/kl_coef": 0.0}, {"kl_coef": 0.0}), "ppo.far")
    assert "kl_coef=0" in found.cause
    assert found.advice[0] == "kl_coef=0.05"


def test_a_penalty_without_effect_is_named():
    curves = {
        "objective/kl": 60.0,
        "objective/scores": lambda step: float(step),
        "objective/kl_coef": 0.001,
    }
    assert "no effect" in find(ppo(curves), "ppo.far").cause


def test_no_penalty_with_a_learned_reward_is_a_warning():
    assert find(ppo(config={"kl_coef": 0.0}), "ppo.no_kl_penalty").severity == "note"
    config = {"kl_coef": 0.0, "reward": {"model": "runs/reward"}}
    assert find(ppo(config=config), "ppo.no_kl_penalty").severity == "warning"


def test_an_adaptive_controller_beyond_its_target():
    config = {"kl_controller": "adaptive", "kl_target": 3.0}
    assert "ppo.far" in alarms(ppo({"objective/kl": 9.0}, config))


def test_a_controller_that_runs_to_an_extreme():
    curves = {"objective/kl_coef": lambda step: 0.05 * 1.2**step}
    assert "ppo.kl_coef" in alarms(ppo(curves, {"kl_controller": "adaptive", "kl_target": 3.0}))


def test_a_value_model_that_is_not_trained_is_named_by_its_key():
    found = find(ppo({"value/explained_variance": -0.4}, {"vf_coef": 0}), "ppo.value")
    assert found.severity == "problem"
    assert "vf_coef=0" in found.cause


def test_updates_that_always_end_early():
    record = ppo({"policy/early_stopped": 1.0}, {"early_stop_kl": 0.01})
    assert "ppo.early_stop" in alarms(record)


def test_score_and_length_of_samples():
    samples = [{"tokens": 10 + k, "score": k / 2, "step": k} for k in range(20)]
    curves = {"tokens/response_length": lambda step: 20 + step / 2}
    assert "ppo.score_by_length" in alarms(ppo(curves, samples=samples))
    assert "ppo.score_by_length" not in alarms(ppo(samples=samples))


def test_advice_has_numbers_where_the_configuration_is_known():
    record = ppo({"tokens/eos_fraction": 0.0})
    assert "sampling.max_new_tokens=128" in find(record, "ppo.eos").advice


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({}, "missing_eos_penalty=1"),
        ({"missing_eos_penalty": 2.0}, "missing_eos_penalty=4"),
        ({"mask_truncated": True}, "mask_truncated=false"),
        ({"overlong_buffer": 32, "overlong_penalty": 1.0}, "overlong_penalty=2"),
    ],
)
def test_advice_about_ends_is_what_the_run_does_not_do_yet(options, advice):
    assert advice in find(ppo({"tokens/eos_fraction": 0.0}, options), "ppo.eos").advice


def test_symptoms_of_one_rollout_need_only_what_is_known():
    assert symptoms({"length": 10.0}, {"length": 11.0}) == []
    assert [one.code for one in symptoms({"length": 10.0}, {"length": 30.0})] == ["ppo.length"]
