"""Loss of the value model per token."""

from __future__ import annotations

import torch
from torch import Tensor


def value_loss(value: Tensor, old_value: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """Clipped value loss: half the larger squared error of the value and the clipped value.

    As in OpenAI's implementation of PPO (Huang et al. 2022, "The 37 implementation details of PPO",
    detail 9).

    Args:
        value: [S], of the value model.
        old_value: [S], of the value model when the response was sampled.
        returns: [S], regression target.
        clip_range: >= 0, largest change of the clipped value from `old_value`.

    Returns:
        [S], not reduced.
    """
    clipped = torch.clamp(value, old_value - clip_range, old_value + clip_range)
    return 0.5 * torch.maximum((value - returns) ** 2, (clipped - returns) ** 2)
