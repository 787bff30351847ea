"""Loss and metrics over a whole data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.examples import Examples
from rlhf_cli.data.loader import eval_batches
from rlhf_cli.distributed import SINGLE_PROCESS, Ranks
from rlhf_cli.losses.reduction import scaled_loss
from rlhf_cli.train.row_loss import RowLoss, RowValues

_EXAMPLE = "index of the example"
"""Name of the column by which rows are put in order after gathering."""


def evaluate_loss(
    loss: RowLoss,
    examples: Examples,
    max_tokens: int,
    device: torch.device,
    ranks: Ranks = SINGLE_PROCESS,
) -> dict[str, float]:
    """Loss of all examples as one step, and its metrics; call it without gradients.

    Args:
        loss: its `on_step` is not called: running statistics stay as they are.
        examples: the whole data set.
        max_tokens: tokens of a micro-batch.
        device: the model's device.
        ranks: ranks that share the work; all get the result.
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
    ranks: Ranks = SINGLE_PROCESS,
) -> tuple[RowValues, dict[str, float]]:
    """Values of all rows, in the order of the examples, and the counts of their units."""
    own: list[dict[str, Tensor]] = []
    counted: Counter[str] = Counter()
    for rows in eval_batches(examples, max_tokens, ranks):
        counted.update(rows.count)
        found = values(rows.to(device))
        moved = {name: value.cpu() for name, value in found.items()}
        own.append({**moved, _EXAMPLE: rows.example_of_row})
    every = [part for part in ranks.all_gather_tensors(_concatenate(own)) if part]
    whole = _concatenate(every)
    order = whole.pop(_EXAMPLE).argsort(stable=True)
    return {name: value[order] for name, value in whole.items()}, ranks.sum_by_name(counted)


def _concatenate(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Values of several parts, concatenated by name; empty without parts."""
    names = parts[0].keys() if parts else ()
    return {name: torch.cat([part[name] for part in parts]) for name in names}
