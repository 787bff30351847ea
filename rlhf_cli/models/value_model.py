"""What is expected of a response from a token on: the value model beside a policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlhf_cli.data.batches import TokenBatch

if TYPE_CHECKING:
    from rlhf_cli.models.policy import Policy
    from rlhf_cli.models.reward_model import RewardModel

VALUE_ADAPTER = "value"
"""Of the adapters that a value model has on the policy's base."""


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


class SharedValueModel(nn.Module):
    """A head on the hidden states of the policy, whose forward pass serves both.

    Attributes:
        alone: the head learns, and the hidden states do not learn from it.
    """

    alone = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = ValueHead(width)

    def forward(self, policy: Policy, rows: TokenBatch, hidden: Callable[[], Tensor]) -> Tensor:
        """[S] fp32, no unit: what is expected behind each scored position.

        Args:
            policy: that wrote the rows.
            rows: on its device.
            hidden: gives [S, d], the policy's hidden states at the scored positions; asked only by
                a value model that reads them.
        """
        found = hidden()
        values: Tensor = self.head(found.detach() if self.alone else found)
        return values


class AdapterValueModel(SharedValueModel):
    """A head on hidden states that adapters of its own make on the policy's base."""

    def forward(self, policy: Policy, rows: TokenBatch, hidden: Callable[[], Tensor]) -> Tensor:
        """As `SharedValueModel`; the policy's hidden states are not read."""
        with policy.playing(VALUE_ADAPTER):
            own = policy.hidden_states(rows, rows.scored)
        values: Tensor = self.head(own)
        return values


class SeparateValueModel(nn.Module):
    """A whole model of its own, which begins as a reward model."""

    def __init__(self, model: RewardModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, policy: Policy, rows: TokenBatch, hidden: Callable[[], Tensor]) -> Tensor:
        """As `SharedValueModel`; the policy's hidden states are not read."""
        return self.model.scores_at(rows, rows.scored)


ValueModel = SharedValueModel | SeparateValueModel
