"""A loss that couples the rows of a step has the gradient of one large batch."""

import torch
from torch.testing import assert_close

from rlhf_cli.kernels.registry import choose
from rlhf_cli.logprobs import sum_by_row
from rlhf_cli.losses.reduce import LossOutput, Term
from rlhf_cli.models.policy import Policy
from rlhf_cli.train.config import TrainConfig
from rlhf_cli.train.optim import MasterAdamW
from rlhf_cli.train.row_loss import RowLoss
from rlhf_cli.train.update import accumulate
from tests.helpers import random_rows, tiny_llama

CPU = torch.device("cpu")


def sorted_loss(policy, seen=None):
    """Every row is compared with the row beside it in the order of their log-probs."""

    def values(rows):
        logp = sum_by_row(policy(rows).logp, rows.row_of_scored, len(rows.lengths))
        return {"logp": logp, "row": rows.example_of_row}

    def loss(values):
        apart = values["logp"].sort().values.diff()
        total = (apart**2).sum() / (1 + values["logp"].var(unbiased=False))
        return LossOutput({"sorted": Term(total, "rows")}, {"rows": (total.detach(), 1)})

    observe = None if seen is None else seen.append
    return RowLoss(values, loss, observe, couples_rows=True)


def gradients_of(cut, seen=None):
    policy = Policy(tiny_llama(), choose("auto", CPU)[0], flat=True)
    optimizer = MasterAdamW(policy, TrainConfig(), torch.float32)
    step = random_rows([9, 4, 17, 6, 30, 11])
    step = list(step.split()) if cut else [step]
    found = accumulate(step, sorted_loss(policy, seen), optimizer)
    return found, optimizer.gradients()


def test_micro_batches_give_the_gradient_of_the_whole_step():
    whole, expected = gradients_of(cut=False)
    cut, got = gradients_of(cut=True)
    assert_close(cut.loss, whole.loss, rtol=1e-5, atol=0)
    assert_close(cut.norm, whole.norm, rtol=1e-4, atol=0)
    for name, gradient in expected.items():
        assert_close(got[name], gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


def test_a_step_is_observed_once_and_whole():
    for cut in (False, True):
        seen = []
        gradients_of(cut, seen)
        (values,) = seen
        assert not values["logp"].requires_grad
        assert len(values["logp"]) == 6


def test_values_that_are_not_finite_are_not_observed():
    seen = []
    loss = RowLoss(lambda rows: {}, lambda values: None, seen.append)
    loss.call_on_step({"logp": torch.tensor([1.0, float("nan")])})
    assert seen == []
    loss.call_on_step({"logp": torch.tensor([1.0, 2.0])})
    assert len(seen) == 1


def test_called_with_rows_it_is_the_loss_of_those_rows():
    policy = Policy(tiny_llama(), choose("auto", CPU)[0], flat=True)
    loss = sorted_loss(policy, seen := [])
    rows = random_rows([9, 4, 17])
    assert_close(
        loss(rows).terms["sorted"].total, loss.loss_fn(loss.values(rows)).terms["sorted"].total
    )
    assert seen == []
