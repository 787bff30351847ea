"""Reward models: one score for a whole row."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.models.batch_layout import pad
from rlhf_cli.models.vocabulary import num_embeddings
from rlhf_cli.models.wrapper import HiddenStateHook, ModelWrapper

HEAD = "score"
"""Name in transformers of the layer that scores each position of a decoder."""


class RewardModel(ModelWrapper):
    """A sequence classifier of one label that computes a score for each row.

    A decoder's score is read at the row's last token, by its position. transformers looks for the
    last token that is not the pad token, which is one too early where a row ends with a token that
    is also the pad token. An encoder reads the row as its class does.
    """

    kind = "reward_model"
    output_name = "scores"
    entry_points = ("scores_at", "plain_outputs")

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        layer = self.output_layer
        self.hook = None if layer is None else HiddenStateHook(layer, keep=slice(None))
        config = model.config.get_text_config()
        padding = config.pad_token_id or 0
        # transformers refuses padded rows without one; the id itself has no effect
        config.pad_token_id = padding if padding < num_embeddings(model) else 0
        self.pad_token = config.pad_token_id

    @property
    def output_layer(self) -> nn.Module | None:
        """The layer that scores each position; none where the model scores whole rows only."""
        return score_layer(self.model)

    def forward(self, rows: TokenBatch, *, role: str = "policy") -> Tensor:
        """Compute the score [R], fp32, no unit, of each row; only differences have a meaning.

        Args:
            rows: on this model's device.
            role: `policy`, or another role with adapters on the same base.

        Raises:
            KeyError: the base has no such role.
        """
        with self.use_adapters(role):
            if self.hook is None:
                return self._pooled(*pad(rows, self.padding_side, self.pad_token))
            return self._scores_at(rows, rows.row_starts + rows.lengths - 1)

    def scores_at(self, rows: TokenBatch, positions: Tensor) -> Tensor:
        """Compute the scores [P], fp32, after some positions of the rows.

        Args:
            rows: on this model's device.
            positions: [P] int64, indices of `rows.tokens`.

        Raises:
            TypeError: the model is an encoder, which scores whole rows only.
        """
        return self._scores_at(rows, positions)

    def _scores_at(self, rows: TokenBatch, positions: Tensor) -> Tensor:
        if self.hook is None:
            raise TypeError(f"{type(self.model).__name__} scores whole rows only")
        with self.hook.open() as hook:
            _, index = self._run(rows)
            # in fp32: the head is small, and bf16 would keep 3 digits of a score
            selected = index.select(positions)
            chosen = selected.take(hook.hidden).float()
        weight, bias = _weights(self.hook.layer)
        return selected.gather(F.linear(chosen, weight.float(), bias).squeeze(1))

    def _pooled(self, tokens: Tensor, mask: Tensor) -> Tensor:
        # no positions: an encoder counts them from its own first one
        logits: Tensor = self.model(input_ids=tokens, attention_mask=mask).logits
        return logits.float().squeeze(1)

    def probe_outputs(self, rows: TokenBatch) -> tuple[Tensor, Tensor]:
        """Compute the scores [R], and the row of each."""
        scores = self(rows)
        return scores, rows.row_of_token[rows.row_starts]

    def plain_outputs(self, row: Tensor) -> Tensor:
        """Compute the score [1] of one row by transformers."""
        config = self.model.config.get_text_config()
        pad_token, config.pad_token_id = config.pad_token_id, None
        try:
            logits: Tensor = self.model(input_ids=row[None]).logits
        finally:
            config.pad_token_id = pad_token
        return logits.float().squeeze(1)


def score_layer(model: Any) -> nn.Module | None:
    """Find the layer that scores each position of a decoder; none in an encoder.

    Under an adapter it is PEFT's wrapper, which holds the trained copy beside the original.
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(plain, HEAD, None)


def name_pad_token(model: Any, tokenizer: Any) -> None:
    """Set the config's pad token so that transformers reads a saved model's score correctly.

    Where pad and end are one token, transformers would read the token before; without a pad token
    it takes single rows only, and reads their last position. An id that the model does not embed is
    left out: with it in its config the model cannot be loaded.
    """
    padding = tokenizer.pad_token_id
    pads = padding is not None and padding != tokenizer.eos_token_id
    embedded = pads and padding < num_embeddings(model)
    model.config.get_text_config().pad_token_id = padding if embedded else None


def _weights(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Read weight and bias; of the trained copy where an adapter brings one."""
    copies = getattr(layer, "modules_to_save", None)
    live = copies[layer.active_adapters[-1]] if copies else layer
    bias = live.bias
    return live.weight, None if bias is None else bias.float()
