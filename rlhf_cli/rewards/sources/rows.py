"""Prompts and responses as the token rows that a reward model was trained to score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.records.fields import Message, Prompt, Response
from rlhf_cli.data.records.types import PromptCompletionRecord
from rlhf_cli.data.report import RefusedRow
from rlhf_cli.data.tokens.encode import FormattedRow, TokenRow, find_special_tokens, tokenize
from rlhf_cli.data.tokens.format import RowFormatter
from rlhf_cli.data.tokens.packing import truncate
from rlhf_cli.errors import DataError
from rlhf_cli.rewards.samples import Samples


class RowWriter:
    """Writes texts in a reward model's own tokens and template, as `rlhf reward` does.

    Every response has its end token: the model has learned to judge whole responses only.

    Args:
        tokenizer: the reward model's.
        as_message: a text prompt is a user's message.
        who: key and value that named the model, for messages.
    """

    def __init__(self, tokenizer: Any, *, as_message: bool, who: str) -> None:
        self.tokenizer, self.as_message, self.who = tokenizer, as_message, who
        self.specials = find_special_tokens(tokenizer)
        self.writer = RowFormatter(tokenizer, self.specials, "response")

    def __call__(self, samples: Samples) -> list[TokenRow]:
        """A row for each sample.

        Raises:
            DataError: the chat template does not take one, or there is none.
        """
        scripts = [self._script(samples, index) for index in range(len(samples))]
        start = self.specials.document_start
        rows = tokenize(scripts, self.tokenizer, start, train_all=False)
        return [self._whole(row) for row in rows]

    def _script(self, samples: Samples, index: int) -> FormattedRow:
        prompt: Prompt = samples.prompts[index]
        response: Response = samples.responses[index]
        if isinstance(prompt, str) and self.as_message:
            prompt = (Message("user", prompt),)
        if not isinstance(prompt, str):
            if not self.tokenizer.chat_template:
                raise DataError(
                    f"{self.who} has no chat template, and the prompts are chats; need a model "
                    "that was trained on chats"
                )
            response = (Message("assistant", samples.responses[index]),)
        try:
            [script] = self.writer.format(PromptCompletionRecord(prompt, response))
        except RefusedRow as error:
            raise DataError(f"{self.who}: {error}, for {samples.describe(index)}") from error
        return script

    def _whole(self, row: TokenRow) -> TokenRow:
        """Prompt, response and end token; nothing of what a template writes behind."""
        if row.loss_mask.any():
            return row.up_to_response_end()
        end = np.array(self.specials.suffix, np.int32)  # an empty response: its end is all of it
        return response_row(row.tokens.tolist(), end.tolist())


def response_row(prompt: Sequence[int], response: Sequence[int]) -> TokenRow:
    """A row of prompt and response tokens."""
    tokens = np.array([*prompt, *response], np.int32)
    trained = np.arange(len(tokens)) >= len(prompt)
    return TokenRow(tokens, trained, len(prompt))


def fit_rows(rows: Sequence[TokenRow], limit: int, bos: int | None) -> list[list[int]]:
    """The tokens of rows, at most `limit` of each: the oldest of the prompt go first."""
    return [
        (row if len(row.tokens) <= limit else _cut(row, limit, bos)).tokens.tolist() for row in rows
    ]


def _cut(row: TokenRow, limit: int, bos: int | None) -> TokenRow:
    if not row.loss_mask.any():  # an empty response: its score is read at the prompt's end
        return TokenRow(row.tokens[-limit:], row.loss_mask[-limit:], limit)
    [cut] = truncate([row], limit, "prompt_start", bos)
    return cut.row


def batched(
    rows: Sequence[Sequence[int]], max_tokens: int
) -> Iterator[tuple[list[int], TokenBatch]]:
    """Indices and rows of micro-batches of at most `max_tokens`, padding counted; longest first."""
    order = sorted(range(len(rows)), key=lambda index: (-len(rows[index]), index))
    while order:
        count = max(1, max_tokens // len(rows[order[0]]))
        chosen, order = order[:count], order[count:]
        yield chosen, _flat([rows[index] for index in chosen])


def _flat(rows: Sequence[Sequence[int]]) -> TokenBatch:
    """Rows one after another; no position is scored, the whole row is."""
    tokens = torch.tensor([token for row in rows for token in row])
    lengths = torch.tensor([len(row) for row in rows])
    return TokenBatch(tokens, lengths, torch.empty(0, dtype=torch.long), torch.arange(len(rows)))
