"""What ranks exchange: the gradients of a step, and whether their weights are still equal."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rlhf_cli.distributed import Ranks
from rlhf_cli.errors import CheckpointError
from rlhf_cli.train.optim import MasterAdamW

BUCKET_BYTES = 64 * 2**20
"""Small gradients travel together in blocks of this size; more would only take memory."""


def add_gradients(optimizer: MasterAdamW, loss: Tensor, ranks: Ranks) -> Tensor:
    """Give every rank the sum of all ranks' gradients.

    A parameter that took part on one rank only has a gradient of zeros on the others; one that took
    part on none keeps none, as in a single process, where AdamW then passes it by.

    Args:
        optimizer: its trained parameters' fp32 gradients are replaced by the sums.
        loss: scalar, fp32, this rank's share.
        ranks: who adds.

    Returns:
        Scalar: the sum of the shares.
    """
    if ranks.world_size == 1:
        return loss
    owners = list(optimizer.owners.values())
    present = [owner.grad is not None for owner in owners]
    head = torch.tensor([0.0, *map(float, present)]).to(owners[0].device)
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
    """Compare the fp32 masters of all ranks, by the sum of each one's bits.

    Raises:
        CheckpointError: they differ; what a rank computed was not what the others did.
    """
    if ranks.world_size == 1:
        return
    sums = [
        master.contiguous().view(torch.int32).sum(dtype=torch.int64)
        for master in optimizer.masters.values()
    ]
    first, *others = ranks.all_gather_json(torch.stack(sums).tolist())
    for rank, other in enumerate(others, start=1):
        if other != first:
            differing = [
                name for name, a, b in zip(optimizer.masters, first, other, strict=True) if a != b
            ]
            raise CheckpointError(
                f"the weights of rank {rank} are not those of rank 0 after step {step} "
                f"({len(differing)} of {len(first)} parameters, {differing[0]} among them); "
                "nothing was saved. Start again from the last checkpoint; if it happens again, use "
                "launch.processes=1 and report it"
            )
