"""Losses made of one value per row, over one micro-batch or a whole optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.kernels.lm_head import TokenLogprobs
from rlhf_cli.logprobs import sum_by_row
from rlhf_cli.losses.dpo import ld_weight
from rlhf_cli.losses.reduction import LossOutput, scaled_loss

RowValues = Mapping[str, Tensor]
"""Name -> [R], one value per row; those computed by the model have a gradient."""


@dataclass(frozen=True)
class RowLoss:
    """A loss in two parts: values of each row, and a function of the values of many rows.

    Calling it with a micro-batch gives the loss of those rows alone.

    Attributes:
        values: computes the values of a micro-batch's rows.
        loss_fn: computes the loss of rows from their values.
        on_step: is called with the values of each optimizer step, without gradient, before the
            loss: it updates running statistics. It is not called with non-finite values.
        couples_rows: whether the loss of a row depends on other examples of the step.
    """

    values: Callable[[TokenBatch], RowValues]
    loss_fn: Callable[[RowValues], LossOutput]
    on_step: Callable[[RowValues], None] | None = None
    couples_rows: bool = False

    def __call__(self, rows: TokenBatch) -> LossOutput:
        """Loss of these rows."""
        return self.loss_fn(self.values(rows))

    @property
    def needs_full_batch(self) -> bool:
        """Whether the values of all rows of the step must be known before the loss."""
        return self.couples_rows or self.on_step is not None

    def call_on_step(self, values: RowValues) -> None:
        """Call `on_step` with the values of a step, moved to the CPU in one transfer."""
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
    """Backpropagate the loss of a step whose rows depend on each other.

    Several micro-batches or ranks take two passes. The first, without gradients, gives the values
    of all rows, hence the loss L and dL/dvalue. The second backpropagates the sum of value *
    dL/dvalue of each micro-batch. The gradient is that of one large batch.

    Args:
        step: micro-batches of this rank; may be empty.
        loss: loss of all rows of the step together.
        counts: count of each unit, over all ranks.
        ranks: ranks among which the rows are divided (`Ranks.data`).
        device: the model's; a rank without rows computes the loss there too.

    Returns:
        Loss and metrics of the whole step; on ranks other than 0, zero and no metrics.
    """
    if len(step) == 1 and ranks.world_size == 1:
        values = loss.values(step[0])
        loss.call_on_step(values)
        output = loss.loss_fn(values)
        share = scaled_loss(output, counts)
        share.backward()
        return share.detach(), output.metrics
    with torch.no_grad():
        found = [(loss.values(rows), rows.is_filler) for rows in step]
    parts = [values for values, is_filler in found if not is_filler]
    whole, start = _gather(parts, ranks, device)
    loss.call_on_step(whole)
    output = loss.loss_fn(whole)
    share = scaled_loss(output, counts)
    gradients = _value_gradients(share, whole)
    for rows in step:
        end = start if rows.is_filler else start + len(rows.lengths)
        values = loss.values(rows)
        terms = [
            (values[n] * (0 if rows.is_filler else gradient[start:end])).sum()
            for n, gradient in gradients.items()
        ]
        trained = [term for term in terms if term.requires_grad]
        if trained:
            torch.stack(trained).sum().backward()
        start = end
    return (share.detach(), output.metrics) if ranks.is_main else (torch.zeros_like(share), {})


def _gather(
    parts: Sequence[RowValues], ranks: Ranks, device: torch.device
) -> tuple[RowValues, int]:
    """Values of all ranks' rows, in the order of the ranks, and the index of this rank's first."""
    names = parts[0].keys() if parts else ()
    own = {name: torch.cat([part[name] for part in parts]) for name in names}
    every = ranks.all_gather_tensors(own)
    filled = [values for values in every if values]
    whole = {name: torch.cat([v[name] for v in filled]).to(device) for name in filled[0]}
    before = [len(next(iter(values.values()))) for values in every[: ranks.rank] if values]
    for value in whole.values():
        value.requires_grad_(value.is_floating_point())
    return whole, sum(before)


def _value_gradients(share: Tensor, whole: RowValues) -> dict[str, Tensor]:
    """Name -> [R], dL/dvalue of each row, for the values that the loss depends on."""
    names = [name for name, value in whole.items() if value.requires_grad]
    found = torch.autograd.grad(share, [whole[name] for name in names], allow_unused=True)
    return {name: grad for name, grad in zip(names, found, strict=True) if grad is not None}


def row_sums(values: Tensor, rows: TokenBatch) -> Tensor:
    """[R]: sum of values [S] over each row's scored tokens."""
    return sum_by_row(values, rows.row_of_scored, len(rows.lengths))


def split_pairs(values: Tensor) -> tuple[Tensor, Tensor]:
    """[B] and [B]: first and second values of examples of two rows each, from [2 B]."""
    return values[0::2], values[1::2]


def row_tokens(rows: TokenBatch) -> Tensor:
    """[R] fp32: number of scored tokens of each row."""
    return row_sums(torch.ones(len(rows.scored), device=rows.tokens.device), rows)


def row_logprobs(out: TokenLogprobs, rows: TokenBatch, ld_alpha: float = 1.0) -> Tensor:
    """[R], nats: log p of each row's response.

    Args:
        out: log-probs of the scored tokens.
        rows: a micro-batch; with `ld_alpha` below 1, of pairs.
        ld_alpha: LD-DPO's weight of tokens past the length of the shorter response of a pair.
    """
    if ld_alpha == 1:
        return row_sums(out.logp, rows)
    return row_sums(out.logp * _ld_weights(rows, ld_alpha), rows)


def _ld_weights(rows: TokenBatch, alpha: float) -> Tensor:
    """[S]: LD-DPO's weight of each scored token."""
    counts = row_tokens(rows)
    ends = counts.long().cumsum(0)  # integers: exact in any order, see train.deterministic
    index = torch.arange(len(rows.scored), device=counts.device)
    token = index - (ends - counts)[rows.row_of_scored]
    example = rows.first_of_example.cumsum(0) - 1
    shortest = torch.full((rows.count["examples"],), torch.inf, device=counts.device)
    shared = shortest.scatter_reduce(0, example, counts, "amin")[example]
    return ld_weight(token, shared[rows.row_of_scored], alpha)
