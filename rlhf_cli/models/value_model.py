"""Value models: the expected return from each response token on, predicted beside a policy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.models.reward_model import RewardModel

VALUE_ADAPTER = "value"
"""Role of the adapters that a value model has on the policy's base."""

HiddenStates = Callable[[str], Tensor]
"""Role of adapters on the policy's base -> its hidden states [S, d] at the scored positions."""


class ValueHead(nn.Module):
    """Linear layer from a hidden state to its value; 0 everywhere before the first update.

    Args:
        width: size d of a hidden state.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute the values [S], fp32, of hidden states [S, d]."""
        # in fp32: the head is small, and bf16 would keep 3 digits of a value
        return F.linear(hidden.float(), self.weight.float(), self.bias.float()).squeeze(1)


class SharedValueModel(nn.Module):
    """Value head on the policy's own hidden states: one forward pass serves both.

    Attributes:
        detach_hidden: train the head alone; no gradient reaches the hidden states.
    """

    detach_hidden = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = ValueHead(width)

    def forward(self, rows: TokenBatch, hidden_states: HiddenStates) -> Tensor:
        """Compute the value [S], fp32, no unit, of each scored position.

        Args:
            rows: on the policy's device.
            hidden_states: computes the hidden states; called only by a value model that needs them.
        """
        hidden = hidden_states("policy")
        values: Tensor = self.head(hidden.detach() if self.detach_hidden else hidden)
        return values


class AdapterValueModel(SharedValueModel):
    """Value head on the hidden states that adapters of its own give on the policy's base."""

    def forward(self, rows: TokenBatch, hidden_states: HiddenStates) -> Tensor:
        """Compute values as `SharedValueModel`, from the hidden states of its own adapters."""
        values: Tensor = self.head(hidden_states(VALUE_ADAPTER))
        return values


class SeparateValueModel(nn.Module):
    """A whole model of its own, initialized from a reward model."""

    def __init__(self, model: RewardModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: TokenBatch, hidden_states: HiddenStates) -> Tensor:
        """Compute values as `SharedValueModel`; the policy's hidden states are not used."""
        return self.model.scores_at(rows, rows.scored)


ValueModel = SharedValueModel | SeparateValueModel
