"""One optimizer step: gradients of all micro-batches, checks, clipping, AdamW."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.distributed import ALONE, Ranks
from rlhf_cli.losses.reduce import LossOutput, Metrics, scaled_loss
from rlhf_cli.train.exchange import add_gradients
from rlhf_cli.train.optim import MasterAdamW
from rlhf_cli.train.row_loss import RowLoss, backward_whole_step

Loss = Callable[[TokenBatch], LossOutput]


class NonFiniteStep(Exception):
    """A loss or gradient of the step is not finite; no parameter was changed."""


@dataclass(frozen=True)
class Gradients:
    """What the backward passes of a step left behind.

    Attributes:
        loss: of the whole step, over all ranks.
        norm: of the gradient of all parameters together, over all ranks, before clipping.
        metrics: sums and counts of this rank's rows.
    """

    loss: Tensor
    norm: Tensor
    metrics: Metrics


def accumulate(
    step: Sequence[TokenBatch], loss: Loss, optimizer: MasterAdamW, ranks: Ranks = ALONE
) -> Gradients:
    """Add up the gradients of a step's micro-batches, those of all ranks.

    Each term is a sum divided by its count over the whole step, so the result does not depend on
    how the step was cut. A rank without rows takes part with zeros.
    """
    own: Counter[str] = Counter()
    for rows in step:
        own.update(rows.count)
    counts = ranks.add(own)
    metrics: Metrics = {}
    device = next(iter(optimizer.masters.values())).device
    if isinstance(loss, RowLoss) and loss.needs_whole_step:
        total, found = backward_whole_step(step, loss, counts, ranks, device)
        _merge(metrics, found)
    else:
        total = torch.zeros((), device=device)
        for rows in step:
            with torch.set_grad_enabled(rows.needs_backward):
                output = loss(rows)
            share = scaled_loss(output, counts)
            if rows.needs_backward:
                share.backward()
            total = total + share.detach()
            _merge(metrics, output.metrics)
    total = add_gradients(optimizer, total, ranks)
    gradients = list(optimizer.gradients().values())
    return Gradients(total, torch.nn.utils.get_total_norm(gradients), metrics)


def clip_and_step(gradients: Gradients, optimizer: MasterAdamW, lr: float, max_norm: float) -> None:
    """Check, clip and step.

    Raises:
        NonFiniteStep: before any parameter is touched.
    """
    norm, loss = torch.stack([gradients.norm, gradients.loss]).tolist()  # one wait for the device
    if not (math.isfinite(norm) and math.isfinite(loss)):
        raise NonFiniteStep(f"loss {loss}, gradient norm {norm}")
    if max_norm and norm > max_norm:
        torch._foreach_mul_(list(optimizer.gradients().values()), max_norm / (norm + 1e-6))
    optimizer.step(lr)


def culprits(
    step: Sequence[TokenBatch], loss: Loss, optimizer: MasterAdamW
) -> list[tuple[TokenBatch, str]]:
    """Which of this rank's examples have a non-finite loss or gradient, each tried alone.

    Returns:
        (its rows, what was not finite) of each; empty where only their sum overflows.
    """

    def alone(rows: TokenBatch) -> LossOutput:
        return loss(rows)  # as one micro-batch: what goes on from step to step sees none of it

    found = []
    for rows in step:
        for example in rows.split():
            optimizer.zero_grad()
            gradients = accumulate([example], alone, optimizer)
            if not torch.isfinite(gradients.loss):
                found.append((example, "loss"))
            elif not torch.isfinite(gradients.norm):
                found.append((example, "gradient"))
    optimizer.zero_grad()
    return found


def _merge(into: Metrics, more: Mapping[str, tuple[Tensor, Tensor | float]]) -> None:
    for name, (total, count) in more.items():
        old_total, old_count = into.get(name, (0.0, 0))
        into[name] = (old_total + total.detach(), old_count + count)
