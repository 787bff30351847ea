"""A reward model whose base is the policy's: an adapter of its own on it, and a head."""

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
from rlhf_cli.models.adapters import Adapters, own_name
from rlhf_cli.models.parameters import lower
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.quantize import is_quantized
from rlhf_cli.models.resolve import ADAPTER_WEIGHTS, Source
from rlhf_cli.models.reward_model import HEAD
from rlhf_cli.models.vocabulary import rows_of
from rlhf_cli.models.wrapper import without_dropout


class SharedRewardModel(nn.Module):
    """Scores rows with the policy's base; as `RewardModel`, without the base in memory again.

    Args:
        policy: its adapters stand on the base that the reward model was trained on.
        role: of the reward model on it; a new one.
        folder: of the reward model's adapter.
        dtype: to compute in.
    """

    def __init__(self, policy: Policy, role: str, folder: Path, dtype: torch.dtype) -> None:
        super().__init__()
        assert policy.adapters is not None
        self.role, self.flat = role, policy.flat
        self._policy = (policy,)  # not a part of this module, whose parameters are its own alone
        head = attach_scorer(policy.adapters, role, folder)
        self.own = nn.ParameterList(policy.adapters.params_of(role))
        lower(self.own, dtype)
        self.head = nn.Parameter(head.to(policy.device, dtype), requires_grad=False)

    @property
    def model(self) -> Any:
        """The transformers model that computes."""
        return self._policy[0].model

    def forward(self, rows: TokenBatch) -> Tensor:
        """[R], no unit, fp32: the score of each row, read at its last token."""
        [policy] = self._policy
        with policy.playing(self.role), without_dropout(policy):  # its own has some from training
            last = policy.hidden_states(rows, rows.starts + rows.lengths - 1)
        return F.linear(last.float(), self.head.float()).squeeze(1)


def can_share(policy: Policy, source: Source) -> bool:
    """Whether a reward model is one adapter on the base that the policy's adapters stand on."""
    mine: Adapters | None = policy.adapters
    if mine is None or len(source.adapters) != 1 or mine.whole_embeddings:
        return False
    if rows_of(source.adapters[0], policy.model.get_base_model()):
        return False  # its embeddings are not the policy's
    packed = is_quantized(policy.model)
    held_alike = mine.source.quant == source.quant or not (packed or source.quant != "none")
    return held_alike and Path(mine.source.folder).resolve() == Path(source.folder).resolve()


HEADS = (HEAD, "classifier")
"""What PEFT trains whole beside the adapter of a classifier, where a model has it."""


def attach_scorer(adapters: Adapters, role: str, folder: Path) -> torch.Tensor:
    """Put the adapter of a reward model on the base of a policy, for a role of its own.

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
    try:
        adapters.add(role, [own_name(role)], config, trained=False)
    except ValueError as error:  # as where its experts are others than the policy's
        raise ModelError(
            f"model.path: the adapter in {folder} cannot stand beside the policy's "
            f"({first_line(error)})"
        ) from error
    layers = {key: value for key, value in stored.items() if key not in heads}
    expected = get_peft_model_state_dict(adapters.model, adapter_name=own_name(role))
    shapes = {key: value.shape for key, value in expected.items()}
    if len(heads) != 1 or {key: value.shape for key, value in layers.items()} != shapes:
        raise ModelError(
            f"model.path: the adapter in {folder} is not that of a reward model on this base"
        )
    set_peft_model_state_dict(adapters.model, layers, adapter_name=own_name(role))
    head: torch.Tensor = stored[heads[0]]
    return head
