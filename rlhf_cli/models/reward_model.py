"""A model that scores whole rows."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.models.batch_layout import pad
from rlhf_cli.models.vocabulary import embedding_rows
from rlhf_cli.models.wrapper import ModelWrapper, Tap

HEAD = "score"
"""What transformers calls the layer that scores each position of a decoder."""


class RewardModel(ModelWrapper):
    """A transformers sequence classifier with one label, seen as a function from rows to scores.

    A decoder's score is read at the row's last token, by its position. transformers looks for the
    last token that is not the pad token, which is one too early where a row ends with a token that
    is also the pad token. An encoder reads the row as its class was made to.
    """

    kind = "reward_model"
    gives = "scores"

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        layer = self.output_layer
        self.tap = None if layer is None else Tap(layer, through=slice(None))
        config = model.config.get_text_config()
        padding = config.pad_token_id or 0
        # without one transformers takes no padded rows; what stands there has no effect
        config.pad_token_id = padding if padding < embedding_rows(model) else 0
        self.pad_token = config.pad_token_id

    @property
    def output_layer(self) -> nn.Module | None:
        """The layer that scores each position; none where the model makes one score of a row."""
        return score_layer(self.model)

    def forward(self, rows: TokenBatch, *, role: str = "policy") -> Tensor:
        """[R], no unit, fp32: the score of each row; what rows of one prompt differ by counts.

        Args:
            rows: on this model's device.
            role: `policy`, or a role whose adapters stand on the same base.

        Raises:
            KeyError: the base has no such role.
        """
        with self.playing(role):
            if self.tap is None:
                return self._pooled(*pad(rows, self.padding_side, self.pad_token))
            return self.scores_at(rows, rows.starts + rows.lengths - 1)

    def scores_at(self, rows: TokenBatch, positions: Tensor) -> Tensor:
        """[P] fp32: the score as it stands after each of some positions of the rows.

        Args:
            rows: on this model's device.
            positions: [P] int64, indices of `rows.tokens`.

        Raises:
            TypeError: an encoder, which has one score for a whole row.
        """
        if self.tap is None:
            raise TypeError(f"{type(self.model).__name__} scores whole rows only")
        with self.tap.open() as tap:
            _, place = self._run(rows)
            # in fp32: the head is small, and bf16 would keep 3 digits of a score
            chosen = place.take(tap.caught, positions).float()
        weight, bias = _weights(self.tap.layer)
        return F.linear(chosen, weight.float(), bias).squeeze(1)

    def _pooled(self, tokens: Tensor, mask: Tensor) -> Tensor:
        # no positions: an encoder counts them from its own first one
        logits: Tensor = self.model(input_ids=tokens, attention_mask=mask).logits
        return logits.float().squeeze(1)

    def values(self, rows: TokenBatch) -> tuple[Tensor, Tensor]:
        """[R] scores and their rows."""
        scores = self(rows)
        return scores, rows.row_of_token[rows.starts]

    def plain_values(self, row: Tensor) -> Tensor:
        """[1]: the score by the model's own forward pass."""
        config = self.model.config.get_text_config()
        pad_token, config.pad_token_id = config.pad_token_id, None
        try:
            logits: Tensor = self.model(input_ids=row[None]).logits
        finally:
            config.pad_token_id = pad_token
        return logits.float().squeeze(1)


def score_layer(model: Any) -> nn.Module | None:
    """The layer that scores each position of a decoder, the live one under an adapter; else none.

    PEFT keeps a copy to train beside the original.
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(plain, HEAD, None)


def name_pad_token(model: Any, tokenizer: Any) -> None:
    """Let transformers read the score of a saved model where it was trained to be read.

    Where pad and end are one token, it would read the token before; without a pad token it takes
    single rows only, and reads their last position. One that the model does not embed is none: a
    model with it in its config cannot be loaded.
    """
    padding = tokenizer.pad_token_id
    pads = padding is not None and padding != tokenizer.eos_token_id
    embedded = pads and padding < embedding_rows(model)
    model.config.get_text_config().pad_token_id = padding if embedded else None


def _weights(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias; of the trained copy where an adapter brings one."""
    copies = getattr(layer, "modules_to_save", None)
    live = copies[layer.active_adapters[-1]] if copies else layer
    bias = live.bias
    return live.weight, None if bias is None else bias.float()
