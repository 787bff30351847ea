"""Loss and metrics over a whole data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.examples import Examples
from rlhf_cli.data.loader import eval_batches
from rlhf_cli.distributed.ranks import SINGLE_PROCESS, Ranks
from rlhf_cli.evaluation.intervals import CONFIDENCE, Measurement
from rlhf_cli.losses.reduction import scaled_loss
from rlhf_cli.train.row_loss import RowLoss, RowValues

_EXAMPLE = "index of the example"
"""Name of the column by which rows are put in order after gathering."""

RESAMPLES = 400
"""Bootstrap resamples of a loss; each calls the loss function once."""

Intervals = dict[str, list[float]]
"""Metric -> lower and upper bound of its 95 % confidence interval; only where there is one."""


@dataclass(frozen=True)
class HeldOutMetrics:
    """Metrics of the held-out rows after a step.

    Attributes:
        values: metric -> value.
        intervals: computes their confidence intervals; a run needs them only at its ends.
    """

    values: dict[str, float]
    intervals: Callable[[], Intervals] = dict


def from_measurements(measured: Sequence[Measurement]) -> HeldOutMetrics:
    """Values of measurements, and their intervals."""
    return HeldOutMetrics(
        {one.metric: one.value for one in measured}, partial(_estimate_intervals, measured)
    )


def _estimate_intervals(measured: Sequence[Measurement]) -> Intervals:
    estimates = {one.metric: one.estimate() for one in measured}
    return {
        name: [one.low, one.high]
        for name, one in estimates.items()
        if np.isfinite([one.low, one.high]).all()
    }


def evaluate_loss(
    loss: RowLoss,
    examples: Examples,
    max_tokens: int,
    device: torch.device,
    ranks: Ranks = SINGLE_PROCESS,
) -> HeldOutMetrics:
    """Loss of all examples as one step, and its metrics; call it without gradients.

    Args:
        loss: its `on_step` is not called: running statistics stay as they are.
        examples: the whole data set.
        max_tokens: tokens of a micro-batch.
        device: the model's device.
        ranks: ranks that share the work; all get the result.
    """
    values, counts = compute_row_values(loss.values, examples, max_tokens, device, ranks)
    return HeldOutMetrics(
        _means(loss, values, counts),
        partial(_bootstrap, loss, values, counts, examples.example_starts),
    )


def _means(loss: RowLoss, values: RowValues, counts: Mapping[str, float]) -> dict[str, float]:
    output = loss.loss_fn(values)
    means = {name: float(total) / float(n) for name, (total, n) in output.metrics.items() if n}
    return {"loss": float(scaled_loss(output, counts)), **means}


@torch.no_grad()
def _bootstrap(
    loss: RowLoss, values: RowValues, counts: Mapping[str, float], starts: NDArray[np.int64]
) -> Intervals:
    """Percentile intervals of resampled examples, as `evaluation.intervals.bootstrap_interval`.

    Args:
        loss: gives the metrics of resampled rows; its terms are sums over rows or examples.
        values: of all rows.
        counts: of the units of the loss, which resamples of as many examples have too.
        starts: first row of each example, and the number of rows.
    """
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {}
    for _ in range(RESAMPLES):
        drawn = rng.integers(len(starts) - 1, size=len(starts) - 1)
        rows = np.concatenate([np.arange(starts[one], starts[one + 1]) for one in drawn])
        index = torch.from_numpy(rows)
        resampled = {name: value[index] for name, value in values.items()}
        for name, value in _means(loss, resampled, counts).items():
            found.setdefault(name, []).append(value)
    tail = (1 - CONFIDENCE) / 2
    bounds = {name: np.quantile(every, [tail, 1 - tail]) for name, every in found.items()}
    return {
        name: [float(low), float(high)]
        for name, (low, high) in bounds.items()
        if np.isfinite([low, high]).all() and low < high
    }


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
        found = values(rows.to(device))
        if rows.is_filler:
            continue
        counted.update(rows.count)
        moved = {name: value.cpu() for name, value in found.items()}
        own.append({**moved, _EXAMPLE: rows.example_of_row})
    every = [part for part in ranks.data.all_gather_tensors(_concatenate(own)) if part]
    whole = _concatenate(every)
    order = whole.pop(_EXAMPLE).argsort(stable=True)
    return {name: value[order] for name, value in whole.items()}, ranks.data.sum_by_name(counted)


def _concatenate(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Values of several parts, concatenated by name; empty without parts."""
    names = parts[0].keys() if parts else ()
    return {name: torch.cat([part[name] for part in parts]) for name in names}
