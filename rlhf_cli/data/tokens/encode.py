"""Tokenize formatted rows: text segments become token ids with a loss mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.data.records.fields import TOKEN_BREAK
from rlhf_cli.errors import ModelError

Ids = NDArray[np.int32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Segment:
    """Text that is tokenized by itself, so that no token crosses its borders.

    Attributes:
        text: text; no token crosses a `TOKEN_BREAK` in it either.
        in_loss: its tokens are targets of the loss.
        excluded: its tokens are never targets, not even with `data.train_on=all`.
    """

    text: str
    in_loss: bool = False
    excluded: bool = False


@dataclass(frozen=True, slots=True)
class FormattedRow:
    """A row as text, before tokenization.

    Attributes:
        segments: segments, concatenated without separators.
        prefix: token ids in front, not in the loss.
        suffix: token ids at the end, in the loss.
        note: change to the row, for the report; empty for none.
    """

    segments: tuple[Segment, ...]
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A tokenized row.

    Attributes:
        tokens: [T] int32, token ids.
        loss_mask: [T] bool, True where the token is a target; False for the first.
        response_start: index of the last response's first token; the tokens before are the prompt.
    """

    tokens: Ids
    loss_mask: Mask
    response_start: int = 0

    def up_to_response_end(self) -> TokenRow:
        """Cut the row after its last target; `response_start` becomes the first target.

        A preference row ends with its response, as a generated response does, without what a chat
        template writes after the end of a turn.
        """
        targets = np.flatnonzero(self.loss_mask)
        end = int(targets[-1]) + 1
        return TokenRow(self.tokens[:end], self.loss_mask[:end], int(targets[0]))


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens around text.

    Attributes:
        eos: end-of-sequence token, after a response or document.
        bos: beginning-of-sequence token, if the tokenizer has one.
        prefix: ids that the tokenizer adds before text.
        suffix: ids that the tokenizer adds after text, ending with one `eos`.
    """

    eos: int
    bos: int | None
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    @property
    def document_start(self) -> int:
        """First token of a document, not in the loss, from which its first text is predicted."""
        return self.eos if self.bos is None else self.bos


def find_special_tokens(tokenizer: Any) -> SpecialTokens:
    """Find the special tokens that a tokenizer puts around text.

    Raises:
        ModelError: it has no end-of-sequence token, or no `tokenizer.json`.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            "the tokenizer has no tokenizer.json, which is needed to find the trained tokens in a "
            "text; convert it, or give another with model.tokenizer=FOLDER_OR_HUB_ID"
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the tokenizer has no end-of-sequence token, so nothing could learn to stop; set "
            "eos_token in its tokenizer_config.json, or give another with "
            "model.tokenizer=FOLDER_OR_HUB_ID"
        )
    eos = int(tokenizer.eos_token_id)
    prefix, suffix = _added_tokens(tokenizer)
    if suffix[-1:] != (eos,):
        suffix = (*suffix, eos)
    return SpecialTokens(eos, tokenizer.bos_token_id, prefix, suffix)


def _added_tokens(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that the tokenizer adds before and after a letter."""
    found = tokenizer("a", return_special_tokens_mask=True)
    ids, special = found["input_ids"], found["special_tokens_mask"]
    text = [index for index, is_special in enumerate(special) if not is_special]
    if not text:  # the letter is unknown and gives no token; an end token cannot be in front
        end = len(ids) - ids.count(tokenizer.eos_token_id)
        return tuple(ids[:end]), tuple(ids[end:])
    return tuple(ids[: text[0]]), tuple(ids[text[-1] + 1 :])


def tokenize(
    rows: Sequence[FormattedRow], tokenizer: Any, document_start: int, *, train_all: bool
) -> list[TokenRow]:
    """Tokenize rows in one call, which the tokenizer distributes over the CPU cores.

    Args:
        rows: formatted rows, which already contain all special tokens.
        tokenizer: fast tokenizer.
        document_start: token before a response without a prompt.
        train_all: include prompts in the loss.
    """
    ids = SegmentEncoder(tokenizer).encode([row.segments for row in rows])
    return [
        _join(row, row_ids, document_start, train_all)
        for row, row_ids in zip(rows, ids, strict=True)
    ]


class SegmentEncoder:
    """Encodes text segments; the first of a row begins a text, the others continue it.

    Some tokenizers put a mark before every text (Llama 2's `▁`), which must not be inside a row.
    With those, later segments are encoded after a line break, which is then removed.

    Args:
        tokenizer: fast tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.backend = tokenizer.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()
        self.lead = self._encode_texts([_LEAD])[0]
        after_lead, alone = self._encode_texts([f"{_LEAD}a", "a"])
        adds_mark = after_lead != self.lead + alone
        self.marks_text_start = adds_mark and after_lead[: len(self.lead)] == self.lead

    def encode(self, rows: Sequence[tuple[Segment, ...]]) -> list[list[list[int]]]:
        """Return the token ids of each segment of each row."""
        parts = [
            [
                (part, not index and not at)
                for at, part in enumerate(segment.text.split(TOKEN_BREAK))
            ]
            for segments in rows
            for index, segment in enumerate(segments)
        ]
        ids = iter(self._encode_parts([part for segment in parts for part in segment]))
        by_segment = iter([[token for _ in segment for token in next(ids)] for segment in parts])
        return [[next(by_segment) for _ in segments] for segments in rows]

    def _encode_parts(self, parts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Return the token ids of texts, each given with whether it begins a row."""
        if not self.marks_text_start:
            return self._encode_texts([text for text, _ in parts])
        found = self._encode_texts([text if first else _LEAD + text for text, first in parts])
        return [
            ids if first else self._remove_lead(ids, text)
            for ids, (text, first) in zip(found, parts, strict=True)
        ]

    def _remove_lead(self, ids: list[int], text: str) -> list[int]:
        if ids[: len(self.lead)] == self.lead:
            return ids[len(self.lead) :]
        return self._encode_texts([text])[0]  # the line break and the text share a token

    def _encode_texts(self, texts: list[str]) -> list[list[int]]:
        found = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in found]


_LEAD = "\n"


def missing_prefix(prefix: Sequence[int], ids: Sequence[int]) -> Sequence[int]:
    """Return the prefix, or nothing if the ids begin with it, as those of rendered chats do.

    Args:
        prefix: ids that the tokenizer adds before text.
        ids: ids of the text.
    """
    return () if [*ids[: len(prefix)]] == [*prefix] else prefix


def _join(
    row: FormattedRow, ids_of_segments: list[list[int]], document_start: int, train_all: bool
) -> TokenRow:
    """Join prefix, segments and suffix; a row without targets gets no suffix."""
    tokens = [*missing_prefix(row.prefix, next(filter(None, ids_of_segments), []))]
    in_loss = [False] * len(tokens)
    excluded = [False] * len(tokens)
    response_start = 0
    for segment, ids in zip(row.segments, ids_of_segments, strict=True):
        if segment.in_loss and not tokens:  # as in a document, the first token is a target too
            tokens, in_loss, excluded = [document_start], [False], [False]
        response_start = len(tokens) if segment.in_loss else response_start
        tokens += ids
        in_loss += [segment.in_loss] * len(ids)
        excluded += [segment.excluded] * len(ids)
    if any(in_loss):
        has_end = row.suffix[-1:] == tuple(tokens[-1:])  # the text contains its own end token
        suffix = () if has_end else row.suffix
        tokens += suffix
        in_loss += [True] * len(suffix)
        if train_all:
            excluded += [False] * len(suffix)
            in_loss = [not one for one in excluded]
        in_loss[0] = False
    return TokenRow(np.array(tokens, np.int32), np.array(in_loss, bool), response_start)
