"""The DPO family against maths by hand, and the facts that hold for it."""

import math

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.losses.config import PREFERENCE_LOSSES
from rlhf_cli.losses.dpo import (
    PAIR_LOSSES,
    LossHyperparams,
    Pairs,
    get_divergence,
    ld_weight,
    log1mexp,
    reverse_kl,
    sigmoid,
    wpo_weight,
)

CHOSEN = [[-1.0, -0.5, -2.0], [-0.7, -1.3]]
REJECTED = [[-1.5, -2.5], [-0.9, -1.1, -0.4, -3.0]]
REFERENCE = [[-4.0, -1.8], [-3.5, -5.0]]
"""Token log-probs of two pairs under the policy, and the sums under the reference."""


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def sums(rows):
    return numbers(*map(sum, rows))


def counts(rows):
    return numbers(*map(len, rows))


def example(f=reverse_kl):
    reference = [numbers(*side) for side in REFERENCE]
    return Pairs(sums(CHOSEN), sums(REJECTED), *reference, counts(CHOSEN), counts(REJECTED), f)


def value(name, f=reverse_kl, **hyperparams):
    return float(PAIR_LOSSES[name](example(f), LossHyperparams(**hyperparams)).mean())


def near(expected):
    return pytest.approx(expected, abs=6e-7)  # what the sixth digit of an agreed number leaves open


AGREED = {
    "sigmoid": 0.663797,
    "hinge": 0.940000,
    "ipo": 23.003472,
    "nca_pair": 1.371694,
    "bco_pair": 1.356732,
    "sppo_hard": 44.350000,
    "aot": 0.663797,
    "aot_unpaired": 0.663710,
    "apo_zero": 0.985003,
    "apo_down": 0.988759,
    "discopop": 0.867400,
    "sigmoid_norm": 0.682839,
}


@pytest.mark.parametrize("name", AGREED)
def test_agreed_numbers(name):
    assert value(name) == near(AGREED[name])


def test_agreed_numbers_of_smoothed_losses():
    assert value("sigmoid", label_smoothing=0.1) == near(0.669797)
    assert value("aot", label_smoothing=0.1) == near(0.669797)
    assert value("robust", label_smoothing=0.1) == near(0.656297)
    assert value("exo_pair", label_smoothing=0.001) == near(2.658351)


def test_agreed_numbers_of_divergences():
    assert value("sigmoid", get_divergence("forward_kl", 0)) == near(0.661056)
    assert value("sigmoid", get_divergence("js", 0)) == near(0.677940)
    assert value("sigmoid", get_divergence("alpha", 0.5)) == near(0.662746)


def test_agreed_numbers_of_the_relatives():
    nll = -sum(map(sum, CHOSEN)) / sum(map(len, CHOSEN))  # a mean over tokens
    assert nll == near(1.1)
    assert value("simpo", beta=2.0) == near(0.434618)
    assert value("cpo") + nll == near(1.702994)
    assert value("orpo") + nll == near(1.138403)


def test_the_agreed_number_of_length_desensitized_dpo():
    def weighted(rows, others):
        shared = [min(len(a), len(b)) for a, b in zip(rows, others, strict=True)]
        return numbers(
            *(
                sum(
                    logp * float(ld_weight(numbers(i), numbers(most), 0.5))
                    for i, logp in enumerate(row)
                )
                for row, most in zip(rows, shared, strict=True)
            )
        )

    reference = [numbers(*side) for side in REFERENCE]
    ones = numbers(1.0, 1.0)
    policy = weighted(CHOSEN, REJECTED), weighted(REJECTED, CHOSEN)
    assert float(sigmoid(Pairs(*policy, *reference, ones, ones), LossHyperparams()).mean()) == near(
        0.684548
    )


def test_the_agreed_number_of_weighted_preference_optimization():
    means = [sums(rows) / counts(rows) + 1 for rows in (CHOSEN, REJECTED)]  # log sum p^2 = -1
    loss = sigmoid(example(), LossHyperparams()) * wpo_weight(*means)
    assert float(loss.mean()) == near(0.341054)


def test_the_registry_and_what_the_config_knows_agree():
    assert [*PAIR_LOSSES] == [name for name in PREFERENCE_LOSSES if name != "sft"]


def test_where_policy_and_reference_agree():
    zeros, ones, logp = torch.zeros(3), torch.ones(3), torch.tensor([-3.0, 0.0, -7.5])
    pairs = Pairs(logp, logp + 1, logp, logp + 1, ones, 2 * ones)
    expected = {
        "sigmoid": math.log(2),
        "robust": math.log(2),
        "aot": math.log(2),
        "aot_unpaired": math.log(2),
        "sigmoid_norm": math.log(2),
        "nca_pair": 2 * math.log(2),
        "bco_pair": 2 * math.log(2),
        "ipo": 1 / (4 * 0.1**2),
        "hinge": 1.0,
        "apo_zero": 1.0,
        "apo_down": 1.0,
    }
    for name, number in expected.items():
        assert_close(PAIR_LOSSES[name](pairs, LossHyperparams()), zeros + number)


SMOOTHING = {"exo_pair": 0.01, "robust": 0.1}


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_gradients(name):
    torch.manual_seed(0)
    logps = [(-torch.rand(4, dtype=torch.float64) * 5 - 1).requires_grad_() for _ in range(2)]
    reference = [-torch.rand(4, dtype=torch.float64) * 5 - 1 for _ in range(2)]
    lengths = [numbers(3, 2, 5, 1), numbers(2, 4, 1, 3)]
    hyperparams = LossHyperparams(label_smoothing=SMOOTHING.get(name, 0.05))

    def loss(chosen, rejected):
        return PAIR_LOSSES[name](Pairs(chosen, rejected, *reference, *lengths), hyperparams)

    assert torch.autograd.gradcheck(loss, logps)


@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize("apart", [-1e4, 1e4])
def test_extreme_values_stay_finite(name, apart):
    far = torch.tensor([-1e4 + min(apart, 0)], requires_grad=True)
    other = torch.tensor([-1e4 - max(apart, 0)], requires_grad=True)
    reference = torch.tensor([-1e4])
    one = torch.ones(1)
    hyperparams = LossHyperparams(label_smoothing=SMOOTHING.get(name, 0.0))
    loss = PAIR_LOSSES[name](Pairs(far, other, reference, reference, one, one), hyperparams)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert far.grad.isfinite().all()
    assert other.grad.isfinite().all()


@pytest.mark.parametrize("name", ["forward_kl", "js", "alpha", "reverse_kl"])
def test_divergences_rise_and_stay_finite(name):
    s = torch.linspace(-200, 200, 41, requires_grad=True)
    values = get_divergence(name, 0.5)(s)
    assert values.isfinite().all()
    assert (values.diff() >= 0).all()
    assert torch.autograd.grad(values.sum(), s)[0].isfinite().all()


def test_alpha_divergence_near_one_is_reverse_kl():
    s = torch.linspace(-2, 2, 9, dtype=torch.float64)
    assert_close(get_divergence("alpha", 1 - 1e-9)(s), s, atol=1e-6, rtol=0)
    assert_close(get_divergence("alpha", 0.0)(s), get_divergence("forward_kl", 0)(s))


@pytest.mark.parametrize("name", ["sigmoid", "sigmoid_norm", "simpo", "cpo", "orpo"])
def test_a_better_chosen_response_costs_less(name):
    logp, ones = torch.linspace(-9.0, -1.0, 20), torch.ones(20)
    pairs = Pairs(logp, -5 * ones, -5 * ones, -5 * ones, ones, ones)
    assert (PAIR_LOSSES[name](pairs, LossHyperparams()).diff() < 0).all()


def test_swapping_the_two_mirrors_the_smoothed_label():
    pairs = example()
    swapped = Pairs(
        pairs.rejected,
        pairs.chosen,
        pairs.ref_rejected,
        pairs.ref_chosen,
        pairs.rejected_tokens,
        pairs.chosen_tokens,
    )
    right = sigmoid(pairs, LossHyperparams(label_smoothing=0.2))
    assert_close(sigmoid(swapped, LossHyperparams(label_smoothing=0.8)), right)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_sorted_losses_do_not_see_the_order_of_the_pairs(name):
    torch.manual_seed(0)
    sides = [torch.randn(6, dtype=torch.float64) for _ in range(4)]
    ones, order = torch.ones(6, dtype=torch.float64), torch.randperm(6)
    whole = PAIR_LOSSES[name](Pairs(*sides, ones, ones), LossHyperparams()).mean()
    turned = PAIR_LOSSES[name](
        Pairs(*(s[order] for s in sides), ones, ones), LossHyperparams()
    ).mean()
    assert_close(whole, turned)


def test_log1mexp_keeps_its_digits():
    x = numbers(-1e-12, -1e-3, -0.5, -0.7, -5.0, -800.0)
    expected = numbers(*(math.log(-math.expm1(v)) for v in x.tolist()))
    assert_close(log1mexp(x), expected, rtol=1e-12, atol=1e-300)
    assert log1mexp(torch.zeros(1)).isfinite().all()
