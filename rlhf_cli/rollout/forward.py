"""A forward pass over slots, up to where hidden states become logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rlhf_cli.models.wrapper import HiddenStateHook
from rlhf_cli.rollout.slots import Pass, SlotCache


class Forward:
    """A model that takes flat tokens of rows in slots.

    Attributes:
        device: of the model.
        cache: of the rows.
    """

    def __init__(self, model: Any, cache: SlotCache) -> None:
        self.device, self.cache = model.device, cache
        self._model = model
        self._hook = HiddenStateHook(model.get_output_embeddings(), keep=slice(0))

    def __call__(self, tokens: Tensor, positions: Tensor, step: Pass) -> Tensor:
        """[N, d]: what the output layer would be given.

        Args:
            tokens: [N] ids.
            positions: [N], of each in its row.
            step: where they go, and what they see.
        """
        with self._hook.open():
            self._model(
                input_ids=tokens[None],
                position_ids=positions[None],
                use_cache=False,
                slot_pass=step,
            )
            return self._hook.hidden[0]
