"""`SharedRewardModel`: a reward model as an adapter and a head on the policy's base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.errors import ModelError, first_line
from rlhf_cli.models.adapters import Adapters, adapter_name
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.quantize import is_quantized
from rlhf_cli.models.resolve import ADAPTER_WEIGHTS, ModelSource
from rlhf_cli.models.reward_model import HEAD
from rlhf_cli.models.vocabulary import rows_needed_by_adapter
from rlhf_cli.models.wrapper import without_dropout

HEADS = (HEAD, "classifier")
"""Layers that PEFT trains whole beside the adapter of a classifier, where the model has them."""


class SharedRewardModel(nn.Module):
    """Scores rows as `RewardModel` does, without a second copy of the base in memory.

    Args:
        policy: its adapters stand on the base that the reward model was trained on.
        role: new role for the reward model's adapter.
        folder: of the reward model's adapter.
        dtype: compute type.
    """

    def __init__(self, policy: Policy, role: str, folder: Path, dtype: torch.dtype) -> None:
        super().__init__()
        assert policy.adapters is not None
        self.role, self.flat = role, policy.flat
        self._policy = (policy,)  # in a tuple, so that its parameters are not this module's
        head = attach_reward_adapter(policy.adapters, role, folder)
        self.own = nn.ParameterList(policy.adapters.adapter_params(role))
        for param in self.own:  # they are where the base is, whose shards may be on the host
            param.data = param.data.to(policy.device, dtype)
        self.head = nn.Parameter(head.to(policy.device, dtype), requires_grad=False)

    @property
    def model(self) -> Any:
        """The policy's transformers model."""
        return self._policy[0].model

    def forward(self, rows: TokenBatch) -> Tensor:
        """Compute the score [R], fp32, no unit, of each row at its last token."""
        [policy] = self._policy
        # the adapter has the dropout that it was trained with
        with policy.use_adapters(self.role), without_dropout(policy):
            last = policy.hidden_states(rows, rows.row_starts + rows.lengths - 1)
        return F.linear(last.float(), self.head.float()).squeeze(1)


def can_share_base(policy: Policy, source: ModelSource) -> bool:
    """Return whether a reward model is one adapter on the base of the policy's adapters."""
    own: Adapters | None = policy.adapters
    if own is None or len(source.adapters) != 1 or own.whole_embeddings:
        return False
    if rows_needed_by_adapter(source.adapters[0], policy.model.get_base_model()):
        return False  # its embeddings differ from the policy's
    quantized = is_quantized(policy.model)
    same_quant = own.source.quant == source.quant or not (quantized or source.quant != "none")
    return same_quant and Path(own.source.folder).resolve() == Path(source.folder).resolve()


def attach_reward_adapter(adapters: Adapters, role: str, folder: Path) -> Tensor:
    """Put a reward model's adapter on the policy's base, under a role of its own.

    Args:
        adapters: on the base that the reward model's adapter was trained on.
        role: a new one.
        folder: of the reward model's adapter.

    Returns:
        [1, d], the weight of its head.

    Raises:
        ModelError: it does not fit the base.
    """
    stored = load_file(folder / ADAPTER_WEIGHTS)
    heads = [key for key in stored if key.endswith(f".{HEAD}.weight")]
    config = PeftConfig.from_pretrained(folder)
    config.task_type = "CAUSAL_LM"
    whole = config.modules_to_save or ()
    config.modules_to_save = [name for name in whole if name not in HEADS] or None
    name = adapter_name(role)
    try:
        adapters.add(role, [name], config, trained=False)
    except ValueError as error:  # for example, the two adapt different experts
        raise ModelError(
            f"model.path: the adapter in {folder} cannot stand beside the policy's "
            f"({first_line(error)})"
        ) from error
    layers = {key: value for key, value in stored.items() if key not in heads}
    expected = get_peft_model_state_dict(adapters.model, adapter_name=name)
    shapes = {key: value.shape for key, value in expected.items()}
    if len(heads) != 1 or {key: value.shape for key, value in layers.items()} != shapes:
        raise ModelError(
            f"model.path: the adapter in {folder} is not that of a reward model on this base"
        )
    set_peft_model_state_dict(adapters.model, layers, adapter_name=name)
    head: Tensor = stored[heads[0]]
    return head
