"""`ModelWrapper`: what policies and reward models have in common around a transformers model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.kernels.lm_head import LMHead
from rlhf_cli.kernels.registry import Implementation
from rlhf_cli.memory.phase import RECORD
from rlhf_cli.mesh import ShardMesh
from rlhf_cli.models.attention import ATTENTION, padded_attention
from rlhf_cli.models.batch_layout import (
    TokenIndex,
    build_flat_batch,
    pad,
    padded_index,
    saved_tokens,
)
from rlhf_cli.models.quantize import quantized_weight

if TYPE_CHECKING:
    from rlhf_cli.models.adapters import Adapters  # PEFT: a second to import


class ModelWrapper(nn.Module, ABC):
    """A transformers model that takes a `TokenBatch`; the only access to parameters in training.

    Every caller goes through `forward`: autocast, data parallelism and adapters wrap a module, and
    a direct call of an inner model would bypass them silently.

    Attributes:
        model: a transformers model.
        implementation: of the log-prob primitive.
        flat: rows are concatenated, and attention keeps them apart; else they are padded.
        shares_prefixes: compute a prefix that rows of an example have in common once; needs
            `per_row` attention.
        adapters: trained beside frozen weights; none where the weights themselves are trained.
        padding_side: of padded rows; no effect on the result.
        pad_token: id that fills padded rows; no effect on the result.
    """

    kind: ClassVar[str]
    """Value of `kind` in artifact.json."""

    output_name: ClassVar[str]
    """What `forward` computes, for messages."""

    entry_points: ClassVar[tuple[str, ...]]
    """Methods beside `forward` that run the model, and so gather sharded weights."""

    mesh: ShardMesh | None = None
    """Processes that share the weights; none where this process holds all of them."""

    gathered_dtype: torch.dtype | None = None
    """Type in which sharded weights are gathered for a pass; none where nothing is sharded."""

    padding_side: Literal["left", "right"] = "right"
    pad_token: int = 0
    shares_prefixes: bool = True

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
        """Device that computes; shards of the parameters may be on the host."""
        return next(self.parameters()).device if self.mesh is None else self.mesh.device

    @property
    def compute_dtype(self) -> torch.dtype:
        """Type of the weights in a pass."""
        own: torch.dtype = self.model.get_input_embeddings().weight.dtype
        return own if self.gathered_dtype is None else self.gathered_dtype

    @property
    @abstractmethod
    def output_layer(self) -> nn.Module | None:
        """The last layer, whose input is the hidden states."""

    @abstractmethod
    def probe_outputs(self, rows: TokenBatch) -> tuple[Tensor, Tensor]:
        """Compute the outputs [V] of `forward` as one tensor, and the row [V] of each."""

    @abstractmethod
    def plain_outputs(self, row: Tensor) -> Tensor:
        """Compute the same outputs for one row of tokens [T] by transformers' own forward pass."""

    def use_adapters(self, role: str) -> AbstractContextManager[None]:
        """Activate the adapters of a role inside the context.

        Raises:
            KeyError: the base has no such role.
        """
        if self.adapters is not None:
            return self.adapters.use(role)
        if role != "policy":
            raise KeyError(role)
        return nullcontext()

    def computed_tokens(self, rows: TokenBatch) -> int:
        """Count the positions that the layers compute: padding too, shared prefixes once."""
        if not self.flat:
            return len(rows.row_lengths) * max(rows.row_lengths)
        return len(rows.tokens) - (saved_tokens(rows) if self._can_share_prefixes else 0)

    @property
    def _can_share_prefixes(self) -> bool:
        return self.shares_prefixes and self._per_row_attention

    @property
    def _per_row_attention(self) -> bool:
        return bool(self.model.config._attn_implementation == ATTENTION)

    def _run(self, rows: TokenBatch) -> tuple[Any, TokenIndex]:
        """Run the model; return its output and the index of the rows' tokens in it."""
        RECORD.in_flight = (len(rows.row_lengths), len(rows.tokens))
        # no cache: it would let flat rows see each other, and it costs memory
        if self.flat:
            flat = build_flat_batch(rows, share=self._can_share_prefixes)
            # transformers' backends for flat rows find the row borders in the positions
            layout = {"row_layout": flat.layout} if self._per_row_attention else {}
            output = self.model(
                input_ids=flat.tokens[None],
                position_ids=flat.positions[None],
                use_cache=False,
                **layout,
            )
            return output, TokenIndex(flat.index)
        tokens, mask = pad(rows, self.padding_side, self.pad_token)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = self.model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False
        )
        return output, TokenIndex(padded_index(rows, self.padding_side))


class HiddenStateHook:
    """Keeps the hidden states that a model gives to its last layer.

    The top-level model is called, so wrappers and adapters keep working. Right for 129 of 130
    causal classes tried, against 112 for a call of the inner model.

    Args:
        layer: its input is hidden states [B, T, d].
        keep: slice of the positions that the layer still computes.
    """

    def __init__(self, layer: nn.Module, keep: slice) -> None:
        self.layer, self.keep = layer, keep
        self._hidden: Tensor | None = None

    @property
    def hidden(self) -> Tensor:
        """Last input [B, T, d] of the layer; only inside `open`."""
        if self._hidden is None:
            raise RuntimeError("the model did not call its output layer")
        return self._hidden

    @contextmanager
    def open(self) -> Iterator[HiddenStateHook]:
        """Keep hidden states inside the context."""
        forward = self.layer.forward
        before = vars(self.layer).get("forward")  # a wrapper may have set one of its own

        def capture(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._hidden = hidden
            return forward(hidden[:, self.keep], *args, **kwargs)

        self.layer.forward = capture
        try:
            yield self
        finally:
            if before is None:
                del self.layer.forward
            else:
                self.layer.forward = before
            self._hidden = None


def read_head(model: Any) -> LMHead:
    """Read the output layer with its config's scales; call it anew for each forward pass."""
    layer, config = model.get_output_embeddings(), model.config.get_text_config()
    rows = getattr(layer, "token_adapter", None)  # PEFT's, where single tokens are trained
    layer = layer if rows is None else rows.base_layer
    scale = getattr(config, "logit_scale", None) or 1.0
    scale *= getattr(config, "lm_head_multiplier", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    quantized = quantized_weight(layer)
    plain = _effective_weight(layer) if quantized is None else quantized
    return LMHead(
        weight=plain if rows is None else rows.get_merged_weights(rows.active_adapters),
        bias=getattr(layer, "bias", None),
        scale=float(scale),
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def _effective_weight(layer: Any) -> Tensor:
    """Add the active low-rank adapters to the base's weight, which `layer.weight` is in PEFT."""
    weight: Tensor = layer.weight
    adapters = getattr(layer, "lora_A", {})
    for name in layer.active_adapters if adapters else ():
        if name in adapters:
            delta = layer.lora_B[name].weight @ adapters[name].weight
            weight = weight + layer.scaling[name] * delta
    return weight


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the context, and nothing else.

    In eval mode bitsandbytes would repack 4-bit weights for a kernel without gradients, and keep
    them so.
    """
    switched = [m for m in module.modules() if isinstance(m, nn.Dropout) and m.training]
    for dropout in switched:
        dropout.eval()
    try:
        yield
    finally:
        for dropout in switched:
            dropout.train()
