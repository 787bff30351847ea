"""Token columns of PPO's rows, which say how the policy loss is reduced and what is `ptx_data`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.losses.policy import aggregation_weights
from rlhf_cli.rollout.response import Response
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.rollouts.minibatches import RESPONSE_MASK, response_masks

POLICY_UNIT = "policy_unit"
"""Token column, True once for each of what the policy loss is divided by: each token, or the first
token of each response."""

POLICY_WEIGHT = "policy_weight"
"""Token column, fp32: weight of a token's policy loss before it is divided."""

PTX_MASK = "ptx_mask"
"""Token column, True for tokens of `ptx_data`."""


def policy_columns(responses: Sequence[Response], cfg: PPOConfig) -> dict[str, Tensor]:
    """[B, T] each: `POLICY_UNIT` and `POLICY_WEIGHT`, which reduce the policy loss.

    Args:
        responses: of this rank.
        cfg: `loss_aggregation` and `mask_truncated`.
    """
    tokens = response_masks(responses)[RESPONSE_MASK]
    kept = tokens
    if cfg.mask_truncated:
        kept = tokens & torch.tensor([one.finished for one in responses], dtype=torch.bool)[:, None]
    weights = aggregation_weights(tokens.sum(1), cfg.loss_aggregation, cfg.sampling.max_new_tokens)
    first = torch.zeros_like(tokens)
    first[:, 0] = True
    units = {"token": kept, "sequence": kept & first, "constant": tokens & first}
    return {POLICY_UNIT: units[cfg.loss_aggregation], POLICY_WEIGHT: weights[:, None] * kept}


def mark_as_ptx(rows: TokenBatch) -> TokenBatch:
    """Rows of `ptx_data` with `PTX_MASK`."""
    return replace(rows, token_columns={PTX_MASK: torch.ones_like(rows.scored, dtype=torch.bool)})
