"""Losses made of one value per row, over one micro-batch or a whole optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.distributed import Ranks
from rlhf_cli.kernels.head import TokenLogprobs
from rlhf_cli.logprobs import sum_by_row
from rlhf_cli.losses.preference import ld_weight
from rlhf_cli.losses.reduce import LossOutput, scaled_loss

RowValues = Mapping[str, Tensor]
"""Name -> [R], a number for each row; those of the model have a gradient."""


@dataclass(frozen=True)
class RowLoss:
    """A loss in two parts: numbers of each row, and a function of the numbers of many rows.

    Called with a micro-batch it gives the loss of those rows alone.

    Attributes:
        values: of the rows of a micro-batch.
        of: the loss of rows with these values.
        observe: told the values of each optimizer step, without gradient, before its loss: for a
            statistic that goes on from step to step. Not told of values that are not finite.
        couples: the loss of a row depends on other examples of the step.
    """

    values: Callable[[TokenBatch], RowValues]
    loss_fn: Callable[[RowValues], LossOutput]
    on_step: Callable[[RowValues], None] | None = None
    couples_rows: bool = False

    def __call__(self, rows: TokenBatch) -> LossOutput:
        """The loss of these rows."""
        return self.loss_fn(self.values(rows))

    @property
    def needs_full_batch(self) -> bool:
        """Whether the values of all rows are to be known before any of them has a loss."""
        return self.couples_rows or self.on_step is not None

    def call_on_step(self, values: RowValues) -> None:
        """Let `observe` see the values of a step, on the CPU: one transfer for all of them."""
        if self.on_step is None:
            return
        whole = torch.stack([value.detach() for value in values.values()]).cpu()
        if whole.isfinite().all():
            self.on_step(dict(zip(values, whole.unbind(), strict=True)))


def backward_full_batch(
    step: Sequence[TokenBatch],
    loss: RowLoss,
    counts: Mapping[str, float],
    ranks: Ranks,
    device: torch.device,
) -> tuple[Tensor, Mapping[str, tuple[Tensor, Tensor | float]]]:
    """Make the gradients of a step whose rows depend on each other.

    Several micro-batches or ranks take two passes: the first, without gradients, gives the values
    of all rows, from which the loss follows, and its slope at each value; the second multiplies
    each micro-batch's values by their slopes. The gradient is that of one large batch.

    Args:
        step: micro-batches of this rank, perhaps none.
        loss: of all rows of the step together.
        counts: of each unit, over all ranks.
        ranks: share the rows.
        device: of the model, where a rank without rows computes the loss too.

    Returns:
        The loss, and metrics; on ranks other than the first, zero and none: they are whole.
    """
    if len(step) == 1 and ranks.size == 1:
        values = loss.values(step[0])
        loss.call_on_step(values)
        output = loss.loss_fn(values)
        share = scaled_loss(output, counts)
        share.backward()
        return share.detach(), output.metrics
    with torch.no_grad():
        parts = [loss.values(rows) for rows in step]
    whole, start = _gather(parts, ranks, device)
    loss.call_on_step(whole)
    output = loss.loss_fn(whole)
    share = scaled_loss(output, counts)
    slopes = _slopes(share, whole)
    for rows in step:
        end = start + len(rows.lengths)
        values = loss.values(rows)
        terms = [(values[n] * slope[start:end]).sum() for n, slope in slopes.items()]
        trained = [term for term in terms if term.requires_grad]
        if trained:
            torch.stack(trained).sum().backward()
        start = end
    return (share.detach(), output.metrics) if ranks.main else (torch.zeros_like(share), {})


def _gather(
    parts: Sequence[RowValues], ranks: Ranks, device: torch.device
) -> tuple[RowValues, int]:
    """The values of all ranks' rows, in the order of the ranks, and where this rank's begin."""
    names = parts[0].keys() if parts else ()
    own = {name: torch.cat([part[name] for part in parts]) for name in names}
    every = ranks.gather_tensors(own)
    filled = [values for values in every if values]
    whole = {name: torch.cat([v[name] for v in filled]).to(device) for name in filled[0]}
    before = [len(next(iter(values.values()))) for values in every[: ranks.rank] if values]
    for value in whole.values():
        value.requires_grad_(value.is_floating_point())
    return whole, sum(before)


def _slopes(share: Tensor, whole: RowValues) -> dict[str, Tensor]:
    """dL/d(value) of each row, for the values that the loss depends on."""
    names = [name for name, value in whole.items() if value.requires_grad]
    found = torch.autograd.grad(share, [whole[name] for name in names], allow_unused=True)
    return {name: slope for name, slope in zip(names, found, strict=True) if slope is not None}


def row_sums(values: Tensor, rows: TokenBatch) -> Tensor:
    """[R]: the sum over each row's scored tokens of values [S]."""
    return sum_by_row(values, rows.row_of_scored, len(rows.lengths))


def split_pairs(values: Tensor) -> tuple[Tensor, Tensor]:
    """[B] and [B], of values [2 B] of the rows of examples that have two rows each."""
    return values[0::2], values[1::2]


def row_tokens(rows: TokenBatch) -> Tensor:
    """[R] fp32: how many tokens of each row are scored."""
    return row_sums(torch.ones(len(rows.scored), device=rows.tokens.device), rows)


def row_logprobs(out: TokenLogprobs, rows: TokenBatch, ld_alpha: float = 1.0) -> Tensor:
    """[R], nats: log p of each row's response.

    Args:
        out: of the scored tokens.
        rows: with `ld_alpha` below 1, pairs.
        ld_alpha: weight of tokens past the length of the shorter response of an example.
    """
    if ld_alpha == 1:
        return row_sums(out.logp, rows)
    return row_sums(out.logp * _ld_weights(rows, ld_alpha), rows)


def _ld_weights(rows: TokenBatch, alpha: float) -> Tensor:
    """[S]: LD-DPO's weight of each scored token."""
    counts = row_tokens(rows)
    ends = counts.long().cumsum(0)  # of integers, whose order does not matter: see deterministic
    index = torch.arange(len(rows.scored), device=counts.device)
    token = index - (ends - counts)[rows.row_of_scored]
    example = rows.first_of_example.cumsum(0) - 1
    shortest = torch.full((rows.count["examples"],), torch.inf, device=counts.device)
    shared = shortest.scatter_reduce(0, example, counts, "amin")[example]
    return ld_weight(token, shared[rows.row_of_scored], alpha)
