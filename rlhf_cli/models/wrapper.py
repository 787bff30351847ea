"""A transformers model that is given rows: what every role of a model has in common.

Where a model's hidden states become logits: the tap, and the scales around the output layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.kernels.registry import Implementation
from rlhf_cli.models.attention import ATTENTION, padded_attention
from rlhf_cli.models.batch_layout import TokenIndex, lay_out, pad, padded_index, saved_tokens

if TYPE_CHECKING:
    from rlhf_cli.models.adapters import Adapters

from rlhf_cli.kernels.head import Head
from rlhf_cli.models.quantize import packed_weight


class ModelWrapper(nn.Module, ABC):
    """The only way to a model's parameters in training.

    Every caller goes through `forward`: what wraps a module (autocast, ranks, adapters) is passed
    by in silence when an inner model is called directly.

    Attributes:
        model: a transformers model.
        implementation: of the log-prob primitive.
        flat: rows go in one after another and attention keeps them apart; else they are padded.
        shares: what the rows of an example begin with alike is computed once; needs our attention.
        adapters: what is trained beside frozen weights, or none where the weights themselves are.
        padding_side: of padded rows; no effect on the result.
        pad_token: fills padded rows up; no effect on the result.
    """

    kind: ClassVar[str]
    """In `artifact.json`."""

    gives: ClassVar[str]
    """What `forward` gives, in words."""

    padding_side: Literal["left", "right"] = "right"
    pad_token: int = 0
    shares: bool = True

    def __init__(
        self,
        model: Any,
        implementation: Implementation,
        *,
        flat: bool,
        adapters: Adapters | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.adapters = adapters
        self.flat = flat
        self.implementation = implementation
        model.set_attn_implementation(ATTENTION if flat else padded_attention(model))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    @abstractmethod
    def output_layer(self) -> nn.Module | None:
        """The last layer, which is given hidden states."""

    @abstractmethod
    def values(self, rows: TokenBatch) -> tuple[Tensor, Tensor]:
        """What `forward` gives as one tensor [V], and the row [V] of each value; for the probe."""

    @abstractmethod
    def plain_values(self, row: Tensor) -> Tensor:
        """The same values of one row of tokens [T], by the model's own forward pass."""

    def playing(self, role: str) -> AbstractContextManager[None]:
        """Let the adapters of a role be active inside.

        Raises:
            KeyError: the base has no such role.
        """
        if self.adapters is not None:
            return self.adapters.using(role)
        if role != "policy":
            raise KeyError(role)
        return nullcontext()

    def computed_tokens(self, rows: TokenBatch) -> int:
        """Positions that the layers compute: padding too, and what rows share but once."""
        if not self.flat:
            return len(rows.sizes) * max(rows.sizes)
        return len(rows.tokens) - (saved_tokens(rows) if self._shares_prefixes else 0)

    @property
    def _shares_prefixes(self) -> bool:
        return self.shares and self._own_attention

    @property
    def _own_attention(self) -> bool:
        return bool(self.model.config._attn_implementation == ATTENTION)

    def _run(self, rows: TokenBatch) -> tuple[Any, TokenIndex]:
        """The model's output for the rows, and where each token of the rows is in it."""
        # A cache would make packed rows see each other and costs memory.
        if self.flat:
            flat = lay_out(rows, share=self._shares_prefixes)
            # transformers' backends for flat rows find their borders in the positions
            rows_apart = {"row_layout": flat.layout} if self._own_attention else {}
            output = self.model(
                input_ids=flat.tokens[None],
                position_ids=flat.positions[None],
                use_cache=False,
                **rows_apart,
            )
            return output, TokenIndex(flat.index)
        tokens, mask = pad(rows, self.padding_side, self.pad_token)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = self.model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False
        )
        return output, TokenIndex(padded_index(rows, self.padding_side))


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """No dropout inside.

    Nothing but dropout is switched: in eval mode bitsandbytes packs 4-bit weights for a kernel that
    has no gradients, and keeps them so.
    """
    switched = [m for m in module.modules() if isinstance(m, nn.Dropout) and m.training]
    for dropout in switched:
        dropout.eval()
    try:
        yield
    finally:
        for dropout in switched:
            dropout.train()


class Tap:
    """Catches the hidden states on their way into a model's last layer.

    The top-level model is called, so wrappers and adapters keep working. Right for 129 of 130
    causal classes tried, against 112 for calling the inner model.

    Args:
        layer: given hidden states [B, T, d].
        through: the positions that the layer is let compute.
    """

    def __init__(self, layer: nn.Module, through: slice) -> None:
        self.layer, self.through = layer, through
        self._hidden: Tensor | None = None

    @property
    def caught(self) -> Tensor:
        """[B, T, d]: the last input of the layer while open."""
        if self._hidden is None:
            raise RuntimeError("the model did not call its output layer")
        return self._hidden

    @contextmanager
    def open(self) -> Iterator[Tap]:
        """While open, hidden states are caught."""
        forward = self.layer.forward
        before = vars(self.layer).get("forward")  # a wrapper may have set one of its own

        def keep(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._hidden = hidden
            return forward(hidden[:, self.through], *args, **kwargs)

        self.layer.forward = keep
        try:
            yield self
        finally:
            if before is None:
                del self.layer.forward
            else:
                self.layer.forward = before
            self._hidden = None


def read_head(model: Any) -> Head:
    """The live output layer with its config's scales; call it anew for each forward pass."""
    layer, config = model.get_output_embeddings(), model.config.get_text_config()
    rows = getattr(layer, "token_adapter", None)  # PEFT's, where single tokens are trained
    layer = layer if rows is None else rows.base_layer
    scale = getattr(config, "logit_scale", None) or 1.0
    scale *= getattr(config, "lm_head_multiplier", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    packed = packed_weight(layer)
    plain = _effective_weight(layer) if packed is None else packed
    return Head(
        weight=plain if rows is None else rows.get_merged_weights(rows.active_adapters),
        bias=getattr(layer, "bias", None),
        scale=float(scale),
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def _effective_weight(layer: Any) -> Tensor:
    """The weight with the active low-rank adapters on it: PEFT's `layer.weight` is the base's."""
    weight: Tensor = layer.weight
    adapters = getattr(layer, "lora_A", {})
    for name in layer.active_adapters if adapters else ():
        if name in adapters:
            delta = layer.lora_B[name].weight @ adapters[name].weight
            weight = weight + layer.scaling[name] * delta
    return weight
