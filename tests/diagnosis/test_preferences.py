"""Rules about dpo, bco, kto and reward models."""

import pytest

from tests.diagnosis.runs import alarms, find, make_record, noise

DPO = {
    "loss": lambda step: 0.69 - 0.008 * step + 0.02 * noise(step),
    "lr": 1e-6,
    "logps/chosen": lambda step: -80 + 0.01 * step + noise(step),
    "logps/rejected": lambda step: -80 - 0.1 * step,
    "rewards/chosen": lambda step: 0.001 * step,
    "rewards/rejected": lambda step: -0.01 * step,
    "rewards/margins": lambda step: 0.011 * step,
    "rewards/accuracies": lambda step: 0.5 + 0.008 * step + 0.02 * noise(step),
}
ROWS = {"held_out_data": {"examples": 100, "kept": 100}}


def dpo(curves=None, **more):
    more = {"manifest": ROWS, "config": {"beta": 0.1}, **more}
    return make_record("dpo", {**DPO, **(curves or {})}, **more)


def test_a_healthy_dpo_run_has_no_alarm():
    assert alarms(dpo(evaluations={"loss": [0.69, 0.5], "rewards/accuracies": [0.5, 0.75]})) == []


@pytest.mark.parametrize(
    ("ratio", "code"),
    [(-0.2, "dpo.likelihood"), (-1.0, "dpo.displacement"), (-9, "dpo.displacement")],
)
def test_a_fall_of_the_chosen_log_prob(ratio, code):
    curves = {"rewards/chosen": ratio, "logps/chosen": -80 + ratio / 0.1}
    found = find(dpo(curves), code)
    assert found.numbers["chosen_fall"] == pytest.approx(-ratio / 0.1)
    assert found.numbers["before"] == pytest.approx(-80)


def test_a_large_fall_is_a_problem():
    curves = {"rewards/chosen": -9.0, "logps/chosen": -170.0}
    assert find(dpo(curves), "dpo.displacement").severity == "problem"


def test_losses_without_reference_have_no_displacement():
    curves = {"rewards/chosen": -9.0, "logps/chosen": -170.0}
    record = dpo(curves, config={"beta": 2.0, "loss_type": "simpo"})
    assert find(record, "dpo.displacement") is None


def test_a_loss_at_ln_2_is_a_rate_too_low():
    curves = {"loss": 0.693, "rewards/margins": 1e-5, "lr": 1e-9}
    found = find(dpo(curves), "dpo.stuck")
    assert found.severity == "problem"
    assert found.advice == ("train.lr=1e-08",)


def test_a_loss_at_ln_2_with_equal_log_probs_is_equal_responses():
    curves = {"loss": 0.693, "rewards/margins": 0.0, "logps/rejected": -80.0, "logps/chosen": -80.0}
    assert "the same" in find(dpo(curves), "dpo.stuck").cause


@pytest.mark.parametrize(
    ("held_out", "code"), [(0.2, "dpo.swapped"), (0.55, "dpo.overfit"), (0.78, "dpo.accuracy")]
)
def test_held_out_accuracy(held_out, code):
    record = dpo(evaluations={"rewards/accuracies": [0.5, held_out]})
    assert find(record, code) is not None


def test_a_margin_that_grows_alone_is_noted():
    record = dpo(
        evaluations={
            "rewards/margins": [0.0, 0.2, 0.4, 0.6, 1.2],
            "rewards/accuracies": [0.5, 0.7, 0.75, 0.75, 0.75],
        }
    )
    assert find(record, "dpo.margin_only").severity == "note"


def test_an_accuracy_that_saturates_at_once():
    curves = {"rewards/accuracies": lambda step: 0.5 if step == 1 else 1.0}
    assert "dpo.saturated" in alarms(dpo(curves))


def test_an_accuracy_that_saturates_late_is_none():
    curves = {"rewards/accuracies": lambda step: min(1.0, 0.5 + step / 40)}
    assert "dpo.saturated" not in alarms(dpo(curves))


BCO = {
    "loss": lambda step: 0.69 - 0.005 * step,
    "lr": 1e-5,
    "rewards/chosen": lambda step: 0.01 * step,
    "rewards/rejected": lambda step: -0.02 * step,
    "delta": lambda step: -0.005 * step,
}


def bco(curves=None, **more):
    return make_record("bco", {**BCO, **(curves or {})}, **more)


def test_a_healthy_bco_run_has_no_alarm():
    data = {"labels": {"desirable": 200, "undesirable": 250}}
    assert alarms(bco(data=data)) == []


def test_labels_that_are_not_told_apart():
    curves = {"rewards/chosen": 0.001, "rewards/rejected": -0.001, "delta": 0.0}
    assert find(bco(curves), "labels.stuck").severity == "problem"


def test_labels_of_held_out_rows_that_mean_the_opposite():
    record = bco(evaluations={"rewards/chosen": [0.0, -0.5], "rewards/rejected": [0.0, 0.3]})
    assert find(record, "labels.swapped").severity == "problem"


def test_both_classes_that_move_the_same_way():
    curves = {"rewards/chosen": -3.0, "rewards/rejected": -3.5}
    assert "labels.same_direction" in alarms(bco(curves))


def test_a_shift_that_runs_away():
    curves = {
        "delta": lambda step: -0.5 * step,
        "rewards/chosen": lambda step: -0.5 * step,
        "rewards/rejected": lambda step: -0.55 * step,
    }
    assert find(bco(curves), "bco.delta_diverges").severity == "problem"


@pytest.mark.parametrize(
    ("good", "weight", "code"),
    [(20, 1.0, "labels.imbalance"), (20, 9.0, "labels.balance"), (90, 1.0, "labels.balance")],
)
def test_label_imbalance(good, weight, code):
    data = {"labels": {"desirable": good, "undesirable": 180}}
    record = bco(data=data, config={"desirable_weight": weight})
    assert find(record, code) is not None


def test_kto_has_the_rules_of_labels():
    curves = {name: curve for name, curve in BCO.items() if name != "delta"}
    data = {"labels": {"desirable": 20, "undesirable": 180}}
    record = make_record("dpo", curves, config={"loss_type": ["kto"]}, data=data)
    assert alarms(record) == ["labels.imbalance"]


REWARD = {
    "loss": lambda step: 0.7 - 0.01 * step,
    "lr": 1e-4,
    "accuracy": lambda step: 0.5 + 0.01 * step + 0.02 * noise(step),
    "margin": lambda step: 0.05 * step,
    "score": lambda step: 0.1 * noise(step),
}


def reward(curves=None, **evaluations):
    held_out = {"accuracy": [0.5, 0.8], "accuracy_longer": [0.5, 0.5], "prefers_longer": [0.5, 0.5]}
    held_out |= evaluations
    return make_record("reward", {**REWARD, **(curves or {})}, evaluations=held_out, manifest=ROWS)


def test_a_healthy_reward_model_has_no_alarm():
    assert alarms(reward()) == []


@pytest.mark.parametrize(
    ("held_out", "code"),
    [(0.2, "reward.swapped"), (0.5, "reward.chance"), (0.62, "reward.overfit")],
)
def test_held_out_accuracy_of_a_reward_model(held_out, code):
    assert code in alarms(reward(accuracy=[0.5, held_out]))


def test_swapped_labels_are_not_also_called_overfitting():
    assert alarms(reward(accuracy=[0.5, 0.1], loss=[0.7, 2.0])) == ["reward.swapped"]


def test_a_model_of_length_is_a_problem():
    record = reward(accuracy_longer=[0.8, 0.8], prefers_longer=[0.5, 0.97])
    assert find(record, "reward.length").severity == "problem"


def test_a_model_no_better_than_length_is_a_warning():
    record = reward(accuracy_longer=[0.8, 0.8], prefers_longer=[0.5, 0.75])
    assert find(record, "reward.length").severity == "warning"


def test_a_model_better_than_length_is_none():
    record = reward(accuracy_longer=[0.6, 0.6], prefers_longer=[0.5, 0.7])
    assert find(record, "reward.length").severity == "ok"


def test_scores_that_drift():
    found = find(reward({"score": lambda step: step}), "reward.scale")
    assert found.severity == "warning"
    assert found.advice == ("center_coefficient=0.01",)
