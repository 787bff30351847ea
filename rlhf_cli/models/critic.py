"""What is expected of a response from a token on: the value model beside a policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlhf_cli.data.batches import Rows

if TYPE_CHECKING:
    from rlhf_cli.models.policy import Policy
    from rlhf_cli.models.reward_model import RewardModel

ROLE = "value"
"""Of the adapters that a critic has on the policy's base."""


class ValueHead(nn.Module):
    """One number for each hidden state, 0 everywhere before the first update.

    Args:
        width: of the hidden states.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor) -> Tensor:
        """[S] fp32, of hidden states [S, d]."""
        # in fp32: the head is small, and bf16 would keep 3 digits of a value
        return F.linear(hidden.float(), self.weight.float(), self.bias.float()).squeeze(1)


class TrunkCritic(nn.Module):
    """A head on the hidden states of the policy, whose forward pass serves both.

    Attributes:
        alone: the head learns, and the hidden states do not learn from it.
    """

    alone = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = ValueHead(width)

    def forward(self, policy: Policy, rows: Rows, hidden: Callable[[], Tensor]) -> Tensor:
        """[S] fp32, no unit: what is expected behind each scored position.

        Args:
            policy: that wrote the rows.
            rows: on its device.
            hidden: gives [S, d], the policy's hidden states at the scored positions; asked only by
                a critic that reads them.
        """
        found = hidden()
        values: Tensor = self.head(found.detach() if self.alone else found)
        return values


class AdapterCritic(TrunkCritic):
    """A head on hidden states that adapters of its own make on the policy's base."""

    def forward(self, policy: Policy, rows: Rows, hidden: Callable[[], Tensor]) -> Tensor:
        """As `TrunkCritic`; the policy's hidden states are not read."""
        with policy.playing(ROLE):
            own = policy.hidden_states(rows, rows.scored)
        values: Tensor = self.head(own)
        return values


class ModelCritic(nn.Module):
    """A whole model of its own, which begins as a reward model."""

    def __init__(self, model: RewardModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, policy: Policy, rows: Rows, hidden: Callable[[], Tensor]) -> Tensor:
        """As `TrunkCritic`; the policy's hidden states are not read."""
        return self.model.scores_at(rows, rows.scored)


Critic = TrunkCritic | ModelCritic
