"""Reward model, BCO and KTO losses against maths by hand."""

import json
import math
from itertools import combinations

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.losses.reward import (
    binary_loss,
    bradley_terry_loss,
    centering_loss,
    comparisons,
    ranking_loss,
    regression_loss,
)
from rlhf_cli.losses.unpaired import RewardShift, bco_loss, density_ratio, kto_loss, reference_point


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def near(expected):
    return pytest.approx(expected, abs=6e-7)


def test_agreed_numbers_of_a_pair():
    w, r = numbers(1.2), numbers(0.3)
    assert float(bradley_terry_loss(w, r)) == near(0.341154)
    assert float(bradley_terry_loss(w, r, 0.5)) == near(0.513015)
    assert float(bradley_terry_loss(w, r) + 0.01 * centering_loss(w, r)) == near(0.363654)


def test_a_ranking_is_the_mean_over_its_pairs_that_are_not_ties():
    scores = numbers(0.3, -1.0, 2.0, 0.1, 0.7)
    targets = numbers(2.0, 2.0, 5.0, 1.0, 0.0)
    example = torch.tensor([0, 0, 0, 1, 1])
    found = comparisons(example, targets)
    by_hand = []
    for rows in ((0, 1, 2), (3, 4)):
        pairs = [(a, b) if targets[a] > targets[b] else (b, a) for a, b in combinations(rows, 2)]
        untied = [(a, b) for a, b in pairs if targets[a] != targets[b]]
        losses = [math.log1p(math.exp(-float(scores[a] - scores[b]))) for a, b in untied]
        by_hand.append(sum(losses) / len(losses))
    assert float(ranking_loss(scores, found).sum()) == pytest.approx(sum(by_hand), rel=1e-12)
    assert len(found.better) == 3


def test_a_ranking_of_two_is_a_pair_and_one_of_ties_is_nothing():
    scores = numbers(0.3, -1.0)
    found = comparisons(torch.tensor([4, 4]), numbers(0.0, 1.0))
    assert_close(ranking_loss(scores, found), bradley_terry_loss(scores[1:], scores[:1]))
    tied = comparisons(torch.tensor([4, 4]), numbers(1.0, 1.0))
    assert ranking_loss(scores, tied).sum() == 0


def test_regression_and_labels():
    assert_close(regression_loss(numbers(1.0, 2.0), numbers(3.0, 2.0)), numbers(4.0, 0.0))
    expected = numbers(math.log1p(math.exp(-2)), math.log1p(math.exp(3)))
    assert_close(binary_loss(numbers(2.0, 3.0), numbers(1.0, 0.0)), expected)


def test_agreed_numbers_of_bco():
    delta = RewardShift("running")
    steps = [
        (numbers(1.0, 2.0, -1.5), numbers(1, 1, 0), 0.05, 0.629185),
        (numbers(5.0, -2.0), numbers(1, 0), 0.09, 0.533819),
    ]
    for ratios, label, expected_delta, expected_loss in steps:
        delta.update(0.1 * ratios, label)
        assert delta.value == pytest.approx(expected_delta, abs=1e-12)
        assert float(bco_loss(0.1 * ratios, label, delta.value).mean()) == near(expected_loss)


def test_agreed_number_of_bco_with_a_density_ratio():
    weight = density_ratio(numbers(0.8))
    assert_close(weight, numbers(4.0))
    losses = bco_loss(numbers(0.1, 0.2, -0.15), numbers(1, 1, 0), 0.05)
    assert float((losses * torch.cat([numbers(1, 1), weight])).mean()) == near(1.227324)
    assert_close(density_ratio(numbers(0.0, 0.99, 1.0)), numbers(0.5, 10.0, 10.0))


def test_bco_starts_at_ln_2():
    losses = bco_loss(torch.zeros(2), torch.tensor([1.0, 0.0]), 0.0)
    assert_close(losses, torch.full((2,), math.log(2)))


def test_kinds_of_delta():
    rewards, label = numbers(1.0, 3.0, -4.0), numbers(1, 1, 0)
    balanced, ema = RewardShift("balanced"), RewardShift("ema", decay=0.5)
    for delta in (balanced, ema):
        assert delta.value == 0
        delta.update(rewards, label)
    assert balanced.value == -1.0  # the middle of 2 and -4
    assert ema.value == 0.0
    ema.update(numbers(8.0), numbers(1))
    assert ema.value == 4.0


def test_delta_comes_back_from_json():
    delta = RewardShift("running")
    delta.update(numbers(1.0, -3.0), numbers(1, 0))
    again = RewardShift("running")
    again.load_state_dict(json.loads(json.dumps(delta.state_dict())))
    assert again == delta


def test_agreed_number_of_kto():
    chosen, rejected = numbers(0.5, -0.2), numbers(-0.5, -0.4)
    s, label = torch.cat([chosen, rejected]), numbers(1, 1, 0, 0)
    assert float(kto_loss(s, label, numbers(0.2), beta=0.1).mean()) == near(0.492503)


def test_the_reference_point_is_not_negative_and_has_no_gradient():
    ratios = numbers(1.0, 2.0).requires_grad_()
    assert not reference_point(ratios).requires_grad
    assert reference_point(ratios) == 1.5
    assert reference_point(-ratios) == 0


@pytest.mark.parametrize(
    "loss",
    [
        bradley_terry_loss,
        lambda a, b: centering_loss(a, b),
        lambda a, b: ranking_loss(
            torch.cat([a, b]), comparisons(torch.tensor([0, 0, 1, 1, 1, 1]), numbers(*range(6)))
        ),
        regression_loss,
        lambda a, b: binary_loss(a, numbers(1, 0, 1)) + b,
        lambda a, b: bco_loss(torch.cat([a, b]), numbers(1, 0, 1, 0, 0, 1), 0.3),
        lambda a, b: kto_loss(torch.cat([a, b]), numbers(1, 0, 1, 0, 0, 1), numbers(0.2), beta=0.3),
    ],
)
def test_gradients(loss):
    torch.manual_seed(0)
    sides = [torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(loss, sides)
