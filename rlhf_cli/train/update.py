"""One optimizer step: gradients of all micro-batches and ranks, checks, clipping, AdamW."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.equal_passes import equal_passes
from rlhf_cli.distributed.ranks import SINGLE_PROCESS, Ranks
from rlhf_cli.errors import CheckpointError
from rlhf_cli.losses.reduction import LossOutput, Metrics, scaled_loss
from rlhf_cli.train.optim import MasterAdamW
from rlhf_cli.train.row_loss import RowLoss, backward_full_batch

Loss = Callable[[TokenBatch], LossOutput]


class NonFiniteStep(Exception):
    """A loss or gradient of the step is not finite; no parameter has changed."""


@dataclass(frozen=True)
class Gradients:
    """Loss and gradient norm of a step after its backward passes.

    Attributes:
        loss: scalar, of the whole step over all ranks.
        norm: scalar, global gradient norm over all ranks, before clipping.
        metrics: sums and counts over this rank's rows.
    """

    loss: Tensor
    norm: Tensor
    metrics: Metrics


def accumulate(
    step: Sequence[TokenBatch], loss: Loss, optimizer: MasterAdamW, ranks: Ranks = SINGLE_PROCESS
) -> Gradients:
    """Accumulate the gradients of a step's micro-batches over all ranks.

    Each term is a sum divided by its count over the whole step, so the result does not depend on
    the micro-batches. A rank without rows adds zeros. The ranks of a context group have the same
    rows, which count once; each of them adds its part of their gradients.
    """
    own: Counter[str] = Counter()
    for rows in step:
        own.update(rows.count)
    step = equal_passes(step, ranks.data, optimizer.device)
    counts = ranks.data.sum_by_name(own)
    metrics: Metrics = {}
    device = optimizer.device
    if isinstance(loss, RowLoss) and loss.needs_full_batch:
        total, found = backward_full_batch(step, loss, counts, ranks.data, device)
        _merge(metrics, found)
    else:
        total = torch.zeros((), device=device)
        for rows in step:
            with torch.set_grad_enabled(rows.needs_backward):
                output = loss(rows)
            share = scaled_loss(output, counts)
            if rows.is_filler:
                share = 0 * share
            if rows.needs_backward:
                share.backward()
            if rows.is_filler:
                continue
            total = total + share.detach()
            _merge(metrics, output.metrics)
    # the ranks of a context group all have the loss of their rows
    total = all_reduce_gradients(optimizer, total / ranks.context.world_size, ranks)
    return Gradients(total, optimizer.gradient_norm(), metrics)


def clip_and_step(
    gradients: Gradients, optimizer: MasterAdamW, lr: float, max_norm: float
) -> float:
    """Check that loss and gradients are finite, clip the gradient norm, and step.

    Returns:
        The loss.

    Raises:
        NonFiniteStep: a loss or gradient is not finite; no parameter has changed.
    """
    norm, loss = torch.stack([gradients.norm, gradients.loss]).tolist()  # one wait for the device
    if not (math.isfinite(norm) and math.isfinite(loss)):
        raise NonFiniteStep(f"loss {loss}, gradient norm {norm}")
    if max_norm and norm > max_norm:
        torch._foreach_mul_(list(optimizer.gradients().values()), max_norm / (norm + 1e-6))
    optimizer.step(lr)
    return float(loss)


def find_non_finite_examples(
    step: Sequence[TokenBatch], loss: Loss, optimizer: MasterAdamW, ranks: Ranks = SINGLE_PROCESS
) -> list[tuple[TokenBatch, str]]:
    """Find this rank's examples that alone have a non-finite loss or gradient.

    With sharded weights gradients are sums over the ranks' examples, and only losses are examined.

    Returns:
        Pairs (rows of the example, `loss` or `gradient`); empty where only their sum overflows.
    """

    def alone(rows: TokenBatch) -> LossOutput:
        return loss(rows)  # not a RowLoss: the stage's running statistics stay as they are

    examples = [example for rows in step for example in rows.split()]
    found = []
    if ranks.sharded:
        with torch.no_grad():
            for example in equal_passes(examples, ranks, optimizer.device):
                share = scaled_loss(loss(example), example.count)
                if not (example.is_filler or torch.isfinite(share)):
                    found.append((example, "loss"))
        return found
    for example in examples:
        optimizer.zero_grad()
        gradients = accumulate([example], alone, optimizer)
        if not torch.isfinite(gradients.loss):
            found.append((example, "loss"))
        elif not torch.isfinite(gradients.norm):
            found.append((example, "gradient"))
    optimizer.zero_grad()
    return found


def name_non_finite(
    step: Sequence[TokenBatch],
    loss: Loss,
    locate: Callable[[TokenBatch], str],
    optimizer: MasterAdamW,
    ranks: Ranks,
) -> list[str]:
    """Lines about the examples of all ranks that `find_non_finite_examples` finds, five at most.

    Args:
        step: micro-batches of this rank; may be empty.
        loss: of a micro-batch.
        locate: rows of one example -> `file:line`.
        optimizer: of the trained parameters, which stay as they are.
        ranks: all call it together.
    """
    own = sorted(
        (rows.example_ids[0], locate(rows), what)
        for rows, what in find_non_finite_examples(step, loss, optimizer, ranks)
    )
    every = {tuple(one) for of_rank in ranks.all_gather_json(own) for one in of_rank}
    found = sorted(every)  # the ranks of a context group find the same rows
    named = [f"  {place}: {what} is not finite" for _, place, what in found[:5]]
    if len(found) > 5:
        named.append(f"  and {len(found) - 5} more of the step's rows")
    return named or ["  each row alone is finite; only their sum overflows"]


def _merge(into: Metrics, more: Mapping[str, tuple[Tensor, Tensor | float]]) -> None:
    for name, (total, count) in more.items():
        old_total, old_count = into.get(name, (0.0, 0))
        into[name] = (old_total + total.detach(), old_count + count)


BUCKET_BYTES = 64 * 2**20
"""Small gradients are all-reduced in buckets of this size; larger ones only take memory."""


def all_reduce_gradients(optimizer: MasterAdamW, loss: Tensor, ranks: Ranks) -> Tensor:
    """Replace every rank's gradients by their sum over all ranks.

    Those of sharded parameters are summed already, in the backward pass. A parameter with a
    gradient on one rank only counts as zeros on the others; one without any gradient keeps none, as
    in a single process, and AdamW skips it.

    Args:
        optimizer: holds the fp32 gradients of the trained parameters.
        loss: scalar, fp32, this rank's part of the loss.
        ranks: ranks of the run; all call this together.

    Returns:
        Scalar: the loss summed over all ranks.
    """
    if ranks.world_size == 1:
        return loss
    owners = list(optimizer.replicated_owners.values())
    present = [owner.grad is not None for owner in owners]
    head = torch.tensor([0.0, *map(float, present)]).to(loss.device)
    head[0] = loss
    ranks.all_reduce(head)
    for owner, count in zip(owners, head[1:].tolist(), strict=True):
        if count and owner.grad is None:
            owner.grad = torch.zeros_like(owner)
    gradients = [owner.grad for owner in owners if owner.grad is not None]
    for bucket in _buckets(gradients):
        _add_bucket(bucket, ranks)
    return head[0]


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    room = BUCKET_BYTES
    for gradient in gradients:
        if bucket and gradient.nbytes > room:
            yield bucket
            bucket, room = [], BUCKET_BYTES
        bucket.append(gradient)
        room -= gradient.nbytes
    if bucket:
        yield bucket


def _add_bucket(bucket: list[Tensor], ranks: Ranks) -> None:
    if len(bucket) == 1 and bucket[0].is_contiguous():
        ranks.all_reduce(bucket[0])
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
    ranks.all_reduce(flat)
    parts = flat.split([gradient.numel() for gradient in bucket])
    for gradient, part in zip(bucket, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def require_equal_weights(optimizer: MasterAdamW, ranks: Ranks, step: int) -> None:
    """Check that ranks that hold the same part of a parameter have the same fp32 masters.

    They are compared by a checksum of each part.

    Raises:
        CheckpointError: they differ.
    """
    if ranks.world_size == 1:
        return
    masters = optimizer.masters.values()
    sums = [m.contiguous().view(torch.int32).sum(dtype=torch.int64) for m in masters]
    places = [(layout.start, layout.rows) for layout in optimizer.layouts.values()]
    own = [(*place, value) for place, value in zip(places, torch.stack(sums).tolist(), strict=True)]
    first: dict[tuple[str, int, int], tuple[int, int]] = {}
    for rank, of_rank in enumerate(ranks.all_gather_json(own)):
        differing = []
        for name, (start, rows, value) in zip(optimizer.masters, of_rank, strict=True):
            other, expected = first.setdefault((name, start, rows), (rank, value))
            if value != expected:
                differing.append((name, other))
        if differing:
            name, other = differing[0]
            raise CheckpointError(
                f"the weights of rank {rank} are not those of rank {other} after step {step} "
                f"({len(differing)} of {len(own)} parameters, {name} among them); "
                "nothing was saved. Start again from the last checkpoint; if it happens again, use "
                "launch.processes=1 and report it"
            )
