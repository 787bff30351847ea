"""TR-DPO: a reference that follows the policy (Gorbatovski et al. 2024, arXiv:2404.09656)."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_cli.models.policy import Policy
from rlhf_cli.stages.reference import Held
from rlhf_cli.train.source import StageState


class MovingReference(StageState):
    """Every so many steps the reference becomes a mean of the policy and itself.

    Args:
        policy: the model that is trained.
        reference: its frozen copy.
        every: optimizer steps.
        share: 0 to 1, of the policy in the mean (arXiv:2404.09656, eq. 6).
    """

    def __init__(self, policy: Policy, reference: Held, every: int, share: float) -> None:
        self.every, self.share = every, share
        self.pairs = reference.params_of(policy)

    def after_step(self, step: int) -> None:
        """Move, if it is time."""
        if step % self.every == 0:
            with torch.no_grad():
                for held, trained in self.pairs.values():
                    held.lerp_(trained.to(held.dtype), self.share)

    def tensors(self) -> dict[str, Tensor]:
        """The reference's weights."""
        return {name: held.data for name, (held, _) in self.pairs.items()}
