"""What is said of a reward model, from made-up scores of responses."""

from dataclasses import replace

import numpy as np
import pytest

from rlhf_cli.commands.doctor.edits import HARMLESS, corrupt
from rlhf_cli.commands.doctor.measure import Copies, RewardScores
from rlhf_cli.commands.doctor.reward_findings import Names, reward_findings, worst
from rlhf_cli.commands.doctor.reward_model import best_of_n_rows

SHAPE = (50, 6)
NAMES = Names("runs/reward", "runs/sft", "prompts.jsonl", "judge.py:score")
NONE = np.zeros(0)


def normal(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE)


def scores_of(scores: np.ndarray, **changes) -> RewardScores:
    found = RewardScores(
        scores=scores,
        lengths=np.abs(normal(1)).round(2),
        judged=normal(0),
        harmless={"tokenized again": scores, "space at the end": scores + 0.1 * normal(2)},
        precision=("bf16", "fp32"),
        other_precision=scores + 0.01 * normal(3),
        copies={"empty": Copies(scores[:, 0], scores[:, 0] - 1, 0)},
        chosen=NONE,
        rejected=NONE,
    )
    return replace(found, **changes)


def severities(found: RewardScores) -> dict[str, str]:
    findings = reward_findings(found, NAMES, seed=0)
    assert all(one.sentence.endswith(".") for one in findings)
    assert all(one.advice for one in findings if one.severity != "ok")
    return {one.code.removeprefix("reward."): one.severity for one in findings}


def test_scores_close_to_the_judges_are_good_enough():
    found = scores_of(normal(0) + 0.4 * normal(4))
    assert set(severities(found).values()) == {"ok"}
    assert worst(reward_findings(found, NAMES, 0)) == "ok"


@pytest.mark.parametrize(
    ("scores", "code", "severity"),
    [
        (-normal(0), "agreement", "problem"),  # labels swapped
        (-normal(0), "best_of_n", "problem"),
        (normal(5), "agreement", "problem"),  # chance
        (normal(5), "best_of_n", "warning"),
        (0.35 * normal(0) + normal(5), "agreement", "warning"),  # weak
        (np.abs(normal(1)).round(2), "length", "problem"),  # length and nothing else
        (-np.abs(normal(1)).round(2), "length", "problem"),
        (normal(0) + np.abs(normal(1)) + 0.9 * normal(8), "length", "warning"),
        (np.ones(SHAPE), "spread", "problem"),
        (30 * (normal(0) + normal(4)), "calibration", "warning"),  # far too sure
    ],
)
def test_a_broken_reward_model_is_named(scores, code, severity):
    assert severities(scores_of(scores))[code] == severity


def test_a_length_that_the_judge_rewards_is_no_fault():
    """The judge likes long responses, and the scores follow the judge alone."""
    judged = normal(0)
    lengths = judged + normal(6)
    found = scores_of(judged + 0.3 * normal(7), judged=judged, lengths=lengths)
    assert severities(found)["length"] == "ok"
    assert severities(replace(found, judged=None))["length"] == "warning"


def test_a_score_that_is_mostly_noise_is_refused():
    scores = normal(0)
    noisy = scores_of(scores, harmless={"space at the end": scores + 2 * normal(2)})
    assert severities(noisy)["noise"] == "problem"
    same_for_all = {"space at the end": scores + 5}
    assert severities(scores_of(scores, harmless=same_for_all))["noise"] == "ok"
    rough = scores_of(scores, other_precision=scores + 0.7 * normal(2))
    assert severities(rough)["precision"] == "warning"


def test_copies_that_score_higher_are_a_problem():
    own = normal(0)[:, 0]
    copies = {
        "text repeated": Copies(own, own + 1, 0),
        "another prompt's answer": Copies(own, own + np.where(np.arange(50) % 5 < 2, 1, -1), 0),
        "empty": Copies(NONE, NONE, 50),
    }
    found = severities(scores_of(normal(0), copies=copies))
    assert found["copies.text_repeated"] == "problem"
    assert found["copies.another_prompts_answer"] == "warning"  # 60 % below
    assert "copies.empty" not in found


def test_without_judge_and_labels_the_best_verdict_is_doubtful():
    found = scores_of(normal(0), judged=None)
    assert severities(found)["agreement"] == "warning"
    assert "best_of_n" not in severities(found)


def test_labelled_pairs_are_counted_and_their_range_compared():
    chosen = np.arange(40.0)
    known = scores_of(normal(0), judged=None, chosen=chosen, rejected=chosen - 1)
    assert severities(known)["labelled"] == "ok"
    assert severities(known)["range"] == "ok"
    assert "agreement" not in severities(known)
    assert severities(replace(known, scores=normal(0) + 100))["range"] == "warning"
    swapped = replace(known, chosen=chosen - 1, rejected=chosen)
    assert severities(swapped)["labelled"] == "problem"


def test_a_judge_without_preferences_leaves_the_agreement_open():
    found = severities(scores_of(normal(0), judged=np.ones(SHAPE)))
    assert found["agreement"] == "warning"
    assert found["length"] == "ok"


def test_the_curve_of_best_of_n_has_scores_and_judges_scores():
    rows = best_of_n_rows(scores_of(normal(0)))
    assert [row["n"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[0]["kl"] == 0
    assert rows[-1]["judge"] == pytest.approx(rows[-1]["most"])
    assert rows[-1]["judge"] == pytest.approx(normal(0).max(1).mean())


def test_corruptions_change_what_they_say():
    text = "One two three. Four five six."
    found = corrupt([text, "Seven."], seed=0)
    assert sorted(found["words shuffled"][0].split()) == sorted(text.split())
    assert found["words shuffled"][0] != text
    assert found["words shuffled"][1] == "Seven."  # too short
    assert found["text repeated"][0] == f"{text} {text}"
    assert found["cut in half"][0] == "One two three."
    assert found["empty"] == ["", ""]
    assert found["another prompt's answer"] == ["Seven.", text]
    assert "another prompt's answer" not in corrupt([text], seed=0)
    changed = {name: change(text) for name, change in HARMLESS.items()}
    assert changed["two spaces between sentences"] == "One two three.  Four five six."
    assert all(copy.split() == text.split() != copy for copy in changed.values())
