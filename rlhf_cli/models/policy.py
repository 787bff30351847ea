"""The only way to a model's parameters in training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rlhf_cli.data.batches import Rows
from rlhf_cli.kernels.head import TokenLogprobs
from rlhf_cli.kernels.registry import Implementation
from rlhf_cli.logprobs import token_logprobs
from rlhf_cli.models.attention import ATTENTION, RowLayout
from rlhf_cli.models.heads import Tap, read_head

if TYPE_CHECKING:
    from rlhf_cli.models.adapters import Adapters


class Policy(nn.Module):
    """A causal language model seen as a function from rows to token log-probabilities.

    Every caller goes through `forward`: what wraps a module (autocast, ranks, adapters) is passed
    by in silence when an inner model is called directly.

    Attributes:
        model: a transformers causal language model.
        flat: rows go in one after another and attention keeps them apart; else they are padded.
        adapters: what is trained beside frozen weights, or none where the weights themselves are.
        padding_side: of padded rows; no effect on the result.
    """

    padding_side: Literal["left", "right"] = "right"

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
        self.tap = Tap(model)
        model.set_attn_implementation(ATTENTION if flat else padded_attention(model))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def forward(
        self,
        rows: Rows,
        *,
        role: str = "policy",
        want: Iterable[str] = ("logp",),
        temperature: float = 1.0,
    ) -> TokenLogprobs:
        """Log-probability of each scored token of the rows.

        Args:
            rows: on this policy's device.
            role: `policy`, or a role whose adapters stand on the same base.
            want: as in `token_logprobs`.
            temperature: > 0; divides the logits.

        Returns:
            [S] values, one for each of `rows.scored`.

        Raises:
            KeyError: the base has no such role.
        """
        with self._playing(role):
            hidden = self.hidden_states(rows)
            return token_logprobs(
                hidden.index_select(0, rows.scored),
                read_head(self.model),
                rows.targets,
                temperature=temperature,
                want=want,
                implementation=self.implementation.run,
            )

    def _playing(self, role: str) -> AbstractContextManager[None]:
        if self.adapters is not None:
            return self.adapters.using(role)
        if role != "policy":
            raise KeyError(role)
        return nullcontext()

    def hidden_states(self, rows: Rows) -> Tensor:
        """[N, d]: what the output layer would be given, one vector a token."""
        with self.tap.open() as tap:
            # A cache would make packed rows see each other and costs memory.
            if self.flat:
                layout = RowLayout(tuple(rows.lengths.tolist()))
                self.model(
                    input_ids=rows.tokens[None],
                    position_ids=rows.positions[None],
                    use_cache=False,
                    row_layout=layout,
                )
            else:
                tokens, mask = pad(rows, self.padding_side)
                self.model(
                    input_ids=tokens,
                    attention_mask=mask,
                    position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                    use_cache=False,
                )
            hidden = tap.hidden
        if hidden is None:
            raise RuntimeError("the model did not call its output layer")
        return hidden.squeeze(0) if self.flat else hidden[mask.bool()]


def pad(rows: Rows, side: Literal["left", "right"] = "right") -> tuple[Tensor, Tensor]:
    """[R, T] tokens and mask (1 keeps), padded with token 0."""
    parts = rows.tokens.split(rows.lengths.tolist())
    kept = [torch.ones_like(part) for part in parts]
    tokens, mask = (pad_sequence(list(p), True, padding_side=side) for p in (parts, kept))
    return tokens, mask


def padded_attention(model: Any) -> str:
    """The attention for padded rows: torch's fused one where the architecture allows it."""
    return "sdpa" if model._supports_sdpa else "eager"


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
