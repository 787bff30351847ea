"""A loss and its metrics over a whole data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch

from rlhf_cli.data.batches import Rows
from rlhf_cli.data.examples import Examples
from rlhf_cli.data.loader import eval_batches
from rlhf_cli.losses.reduce import scaled_loss
from rlhf_cli.ranks import ALONE, Ranks
from rlhf_cli.train.row_loss import RowLoss, RowValues


def measure(
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
    values, counts = row_values(loss.values, examples, max_tokens, device, ranks)
    output = loss.of(values)
    means = {name: float(total) / n for name, (total, n) in output.metrics.items() if n}
    return {"loss": float(scaled_loss(output, counts)), **means}


def row_values(
    values: Callable[[Rows], RowValues],
    examples: Examples,
    max_tokens: int,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> tuple[RowValues, dict[str, float]]:
    """The values of all rows, in the order of the examples, and the counts of their units."""
    own: list[tuple[list[int], RowValues]] = []
    counted: Counter[str] = Counter()
    for rows in eval_batches(examples, max_tokens, ranks):
        counted.update(rows.count)
        found = values(rows.to(device))
        moved = {name: value.cpu() for name, value in found.items()}
        own.append((rows.example_of_row.tolist(), moved))
    every = [part for of_rank in ranks.gather(own) for part in of_rank]
    order = torch.tensor([e for indices, _ in every for e in indices]).argsort(stable=True)
    names = every[0][1].keys()
    whole = {name: torch.cat([part[name] for _, part in every])[order] for name in names}
    return whole, ranks.add(counted)
