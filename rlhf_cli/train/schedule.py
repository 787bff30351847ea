"""Learning rate as a function of the step: no object, nothing to resume."""

from __future__ import annotations

import math

from rlhf_cli.train.config import TrainConfig


def learning_rate(peak: float, step: int, total: int, cfg: TrainConfig) -> float:
    """The rate of optimizer step `step`.

    Args:
        peak: the highest rate of the run.
        step: from 0 to total - 1.
        total: steps of the run.
        cfg: `schedule warmup_steps min_lr_ratio decay_fraction`.

    Returns:
        peak · (step + 1) / warmup_steps while warming up; after that, from the peak at the first
        step down to peak · min_lr_ratio, which would be reached at step `total`.
    """
    if step < cfg.warmup_steps:
        return peak * (step + 1) / cfg.warmup_steps
    progress = (step - cfg.warmup_steps) / max(1, total - cfg.warmup_steps)
    share = _decay(progress, cfg)
    return peak * (cfg.min_lr_ratio + (1 - cfg.min_lr_ratio) * share)


def _decay(progress: float, cfg: TrainConfig) -> float:
    """1 at progress 0 and, unless constant, 0 at progress 1."""
    if cfg.schedule == "constant":
        return 1.0
    if cfg.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if cfg.schedule == "linear":
        return 1 - progress
    return min(1.0, (1 - progress) / cfg.decay_fraction) if cfg.decay_fraction else 1.0
