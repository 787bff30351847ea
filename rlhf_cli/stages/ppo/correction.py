"""Importance weights of PPO's policy loss against the mismatch of server and policy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_cli.losses.correction import importance_weights
from rlhf_cli.losses.reduction import Metrics, mean_metric
from rlhf_cli.rollout.response import Response
from rlhf_cli.rollout.server.config import RolloutConfig
from rlhf_cli.stages.ppo.advantages import RolloutTensors
from rlhf_cli.stages.rollouts.minibatches import pad_table
from rlhf_cli.stages.rollouts.statistics import mismatch_metrics

CORRECTION = "correction"
"""Token column: importance weights that multiply the policy loss."""


def correct(
    responses: Sequence[Response], tensors: RolloutTensors, cfg: RolloutConfig
) -> tuple[dict[str, Tensor], Metrics]:
    """Compare the log-probs of a server with the policy's, and compute the importance weights.

    Args:
        responses: B of them, of a server.
        tensors: theirs.
        cfg: how the weights are computed.

    Returns:
        Name -> [B, T] of the token columns, none without correction, and metrics.
    """
    mask = tensors.response_mask
    count = len(responses)
    sampled = pad_table({k: torch.tensor(one.logprobs) for k, one in enumerate(responses)}, count)
    sampled = torch.nn.functional.pad(sampled, (0, mask.shape[1] - sampled.shape[1]))
    metrics = mismatch_metrics(tensors.logprobs[mask], sampled[mask])
    if cfg.corrects == "none":
        return {}, metrics
    per = cfg.corrects
    weights = importance_weights(
        tensors.logprobs, sampled, mask, per=per, cap=cfg.correction_cap, drop=cfg.correction_mask
    )
    kept = weights[mask]
    cut = (kept == 0) if cfg.correction_mask else (kept >= cfg.correction_cap)
    metrics["correction/weight"] = mean_metric(kept)
    metrics["correction/cut"] = mean_metric(cut.float())
    return {CORRECTION: weights}, metrics
