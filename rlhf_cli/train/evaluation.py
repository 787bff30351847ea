"""A loss and its metrics over a whole data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.examples import Examples
from rlhf_cli.data.loader import eval_batches
from rlhf_cli.distributed import ALONE, Ranks
from rlhf_cli.losses.reduce import scaled_loss
from rlhf_cli.train.row_loss import RowLoss, RowValues

_EXAMPLE = "index of the example"
"""Travels with the values of a row, to put the rows in order."""


def evaluate_loss(
    loss: RowLoss,
    examples: Examples,
    max_tokens: int,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """The loss of all examples as of one step, and its metrics; call it without gradients.

    Args:
        loss: nothing of it is observed: what goes on from step to step stays as it is.
        examples: of a whole data set.
        max_tokens: of a micro-batch.
        device: of the model.
        ranks: share the work; all get the result.
    """
    values, counts = compute_row_values(loss.values, examples, max_tokens, device, ranks)
    output = loss.loss_fn(values)
    means = {name: float(total) / float(n) for name, (total, n) in output.metrics.items() if n}
    return {"loss": float(scaled_loss(output, counts)), **means}


def compute_row_values(
    values: Callable[[TokenBatch], RowValues],
    examples: Examples,
    max_tokens: int,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> tuple[RowValues, dict[str, float]]:
    """The values of all rows, in the order of the examples, and the counts of their units."""
    own: list[dict[str, Tensor]] = []
    counted: Counter[str] = Counter()
    for rows in eval_batches(examples, max_tokens, ranks):
        counted.update(rows.count)
        found = values(rows.to(device))
        moved = {name: value.cpu() for name, value in found.items()}
        own.append({**moved, _EXAMPLE: rows.example_of_row})
    every = [part for part in ranks.gather_tensors(_joined(own)) if part]
    whole = _joined(every)
    order = whole.pop(_EXAMPLE).argsort(stable=True)
    return {name: value[order] for name, value in whole.items()}, ranks.add(counted)


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The rows of several parts, by name; nothing where there is no part."""
    names = parts[0].keys() if parts else ()
    return {name: torch.cat([part[name] for part in parts]) for name in names}
