"""Steps of a run: how many, of how many tokens, and how often it evaluates and saves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_cli.commands.dry_run.rows import RowFacts
from rlhf_cli.data.sampler import EpochSampler, group_examples, rank_share

TRIED_STEPS = 20
"""Steps whose examples are divided into micro-batches, to find how many there are."""


@dataclass(frozen=True)
class Steps:
    """Steps of a run.

    Attributes:
        total: of the run; in ppo a step is a rollout.
        per_epoch: of an epoch.
        items: examples or prompts of a step.
        tokens: of a step, on average; 0 where they are sampled.
        micro_batches: of a step and process, on average.
        evaluations: of the held-out rows in the whole run.
        checkpoints: that are written.
        kept: checkpoints that are on disk at the end.
    """

    total: int
    per_epoch: int
    items: int
    tokens: float
    micro_batches: float
    evaluations: int
    checkpoints: int
    kept: int


def count_steps(cfg: Any, rows: RowFacts, tokens_a_pass: int, processes: int) -> Steps:
    """Count the steps of a stage.

    Args:
        cfg: its configuration.
        rows: training rows or prompts.
        tokens_a_pass: `train.micro_batch_tokens`, as chosen.
        processes: that share each step.
    """
    train = cfg.train
    sampler = EpochSampler(rows.count, rows.tokens, cfg.data, train, cfg.seed)
    total = sampler.total_steps
    best = int(train.result == "best")
    checkpoints = _due(total, train.save_steps) + best
    return Steps(
        total=total,
        per_epoch=sampler.steps_per_epoch,
        items=min(train.batch_size, rows.count),
        tokens=rows.tokens / sampler.steps_per_epoch if rows.examples is not None else 0.0,
        micro_batches=_micro_batches(cfg, rows, tokens_a_pass, processes),
        evaluations=1 + _due(total, train.eval_steps) if cfg.data.holds_out else 0,
        checkpoints=checkpoints,
        kept=min(checkpoints, train.keep_checkpoints + best),
    )


def _due(total: int, every: int) -> int:
    """How often something that is done every `every` steps and after the last is done."""
    return (total // every + (total % every > 0)) if every else min(total, 1)


def _micro_batches(cfg: Any, rows: RowFacts, tokens: int, processes: int) -> float:
    """Mean number of micro-batches of the first steps of rank 0."""
    examples = rows.examples
    if examples is None or not tokens:
        return 0.0
    sampler = EpochSampler(len(examples), rows.tokens, cfg.data, cfg.train, cfg.seed)
    found: list[int] = []
    while len(found) < TRIED_STEPS and (chosen := sampler.next_step()) is not None:
        own = rank_share(examples, chosen, 0, processes)
        found.append(sum(1 for _ in group_examples(examples, own, tokens)))
    return float(np.mean(found)) if found else 0.0
