"""A transformers model that is given rows: what every role of a model has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.kernels.registry import Implementation
from rlhf_cli.models.attention import ATTENTION
from rlhf_cli.models.sharing import lay_out, saved_tokens
from rlhf_cli.models.varlen import obstacle

if TYPE_CHECKING:
    from rlhf_cli.models.adapters import Adapters


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
            return len(rows.row_lengths) * max(rows.row_lengths)
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


@dataclass(frozen=True)
class TokenIndex:
    """Where the tokens of rows are in what a model computes of them.

    Attributes:
        index: [N], where each token of the rows is, batch and sequence counted as one; none where
            flat rows have no tokens in common, and each token has its own place.
    """

    index: Tensor | None = None

    def take(self, values: Tensor, positions: Tensor) -> Tensor:
        """[P, ...]: the values of the tokens at some positions of the rows.

        Args:
            values: [1, n, ...] of flat rows, or [R, T, ...] of padded ones.
            positions: [P] int64, indices of `Rows.tokens`.
        """
        flat = values.flatten(0, 1)
        return flat.index_select(0, positions if self.index is None else self.index[positions])


def pad(
    rows: TokenBatch, side: Literal["left", "right"] = "right", token: int = 0
) -> tuple[Tensor, Tensor]:
    """[R, T] tokens and mask (1 keeps)."""
    parts = rows.tokens.split(rows.row_lengths)
    kept = [torch.ones_like(part) for part in parts]
    tokens = pad_sequence(list(parts), True, padding_value=token, padding_side=side)
    return tokens, pad_sequence(kept, True, padding_side=side)


def padded_index(rows: TokenBatch, side: Literal["left", "right"]) -> Tensor:
    """[N] int64: where `pad` puts each token, in its table [R, T] taken as one sequence."""
    width = max(rows.row_lengths)
    first = torch.arange(len(rows.row_lengths), device=rows.tokens.device) * width
    if side == "left":
        first = first + width - rows.lengths
    return first[rows.row_of_token] + rows.positions


def padded_attention(model: Any) -> str:
    """The attention for padded rows: torch's fused one where the architecture allows it."""
    return "sdpa" if model._supports_sdpa else "eager"


def describe_attention(policy: ModelWrapper, compute: torch.dtype) -> str:
    """The attention by name; on CUDA also whether ours takes all rows at once, or why not."""
    config = policy.model.config.get_text_config()
    name: str = policy.model.config._attn_implementation
    if name != ATTENTION or policy.device.type != "cuda":
        return name.removeprefix("rlhf_")
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    reason = obstacle(policy.device, compute, width)
    calls = f"a call for each row: varlen {reason}" if reason else "all rows in one call"
    return f"per_row ({calls})"


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
