"""Rows of text as token ids, with a mask of the tokens that are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.data.records.fields import BREAK
from rlhf_cli.errors import ModelError


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is tokenized by itself, so that no token reaches over its borders.

    Attributes:
        text: perhaps with `BREAK`s, over which no token reaches either.
        trained: its tokens are targets.
        excluded: they never are, also where all other tokens are trained.
    """

    text: str
    trained: bool = False
    excluded: bool = False


@dataclass(frozen=True, slots=True)
class Script:
    """A row before tokenization.

    Attributes:
        pieces: joined as they stand.
        opening: token ids in front, never trained.
        closing: token ids at the end, trained.
        note: what is to be reported of the row; empty for nothing.
    """

    pieces: tuple[Piece, ...]
    opening: tuple[int, ...] = ()
    closing: tuple[int, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Specials:
    """Token ids that are put around text.

    Attributes:
        eos: ends a response or document.
        bos: begins a text, where the tokenizer has such a token.
        opening: what the tokenizer itself puts in front of text.
        closing: what it puts behind, with one end-of-sequence token.
    """

    eos: int
    bos: int | None
    opening: tuple[int, ...]
    closing: tuple[int, ...]

    @property
    def document_start(self) -> int:
        """Untrained first token of a document: what its first token is predicted from."""
        return self.eos if self.bos is None else self.bos


def find_specials(tokenizer: Any) -> Specials:
    """Ask a tokenizer what it puts around text.

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
    opening, closing = _around(tokenizer)
    if closing[-1:] != (eos,):
        closing = (*closing, eos)
    return Specials(eos, tokenizer.bos_token_id, opening, closing)


def _around(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the tokenizer adds in front of a letter and behind it."""
    found = tokenizer("a", return_special_tokens_mask=True)
    ids, added = found["input_ids"], found["special_tokens_mask"]
    text = [index for index, special in enumerate(added) if not special]
    if not text:  # the letter is unknown and leaves no token; an end token cannot be in front
        end = len(ids) - ids.count(tokenizer.eos_token_id)
        return tuple(ids[:end]), tuple(ids[end:])
    return tuple(ids[: text[0]]), tuple(ids[text[-1] + 1 :])


Ids = NDArray[np.int32]


Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A row of tokens.

    Attributes:
        tokens: [T] int32.
        trained: [T] bool, True where the token is a target; the first never is.
        response_start: index of the last response's first token; what is before is prompt.
    """

    tokens: Ids
    trained: Mask
    response_start: int = 0

    def response_alone(self) -> TokenRow:
        """The row up to its last trained token, with all of its response behind `response_start`.

        What a template writes behind the end of a turn is no part of what is judged: a generated
        response ends without it.
        """
        trained = np.flatnonzero(self.trained)
        end = int(trained[-1]) + 1
        return TokenRow(self.tokens[:end], self.trained[:end], int(trained[0]))


def tokenize(
    scripts: Sequence[Script], tokenizer: Any, document_start: int, *, train_all: bool
) -> list[TokenRow]:
    """One row a script; all of them in one call, which the tokenizer spreads over the cores.

    Args:
        scripts: what to tokenize.
        tokenizer: a fast one; special tokens are written in the scripts already.
        document_start: stands before a response that has no prompt.
        train_all: train the prompts too.
    """
    found = iter(PieceEncoder(tokenizer).encode([script.pieces for script in scripts]))
    return [_join(script, next(found), document_start, train_all) for script in scripts]


class PieceEncoder:
    """Token ids of pieces of text: the first of a row begins a text, the others go on with it.

    Some tokenizers put a mark in front of every text (Llama 2's `▁`), which is not to stand in the
    middle of a row. Their later pieces are tokenized behind a line end, which is then taken away.

    Args:
        tokenizer: a fast one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.rules = tokenizer.backend_tokenizer
        self.rules.no_truncation()
        self.rules.no_padding()
        self.lead = self._ids([_LEAD])[0]
        behind, alone = self._ids([f"{_LEAD}a", "a"])
        self.marks = behind != self.lead + alone and behind[: len(self.lead)] == self.lead

    def encode(self, rows: Sequence[tuple[Piece, ...]]) -> list[list[list[int]]]:
        """Token ids of each piece of each row."""
        parts = [
            [(part, not index and not at) for at, part in enumerate(piece.text.split(BREAK))]
            for pieces in rows
            for index, piece in enumerate(pieces)
        ]
        ids = iter(self._of_parts([part for piece in parts for part in piece]))
        each = iter([[token for _ in piece for token in next(ids)] for piece in parts])
        return [[next(each) for _ in pieces] for pieces in rows]

    def _of_parts(self, parts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Token ids of texts, each with whether it begins a row."""
        if not self.marks:
            return self._ids([text for text, _ in parts])
        found = self._ids([text if first else _LEAD + text for text, first in parts])
        return [
            ids if first else self._without_lead(ids, text)
            for ids, (text, first) in zip(found, parts, strict=True)
        ]

    def _without_lead(self, ids: list[int], text: str) -> list[int]:
        if ids[: len(self.lead)] == self.lead:
            return ids[len(self.lead) :]
        return self._ids([text])[0]  # the line end became one token with what follows it

    def _ids(self, texts: list[str]) -> list[list[int]]:
        found = self.rules.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in found]


_LEAD = "\n"


def opening_of(opening: Sequence[int], ids: Sequence[int]) -> Sequence[int]:
    """What is put in front of a text: nothing where the text begins with it, as rendered chats do.

    Args:
        opening: what the tokenizer puts in front of each text.
        ids: of the text.
    """
    return () if [*ids[: len(opening)]] == [*opening] else opening


def _join(script: Script, parts: list[list[int]], document_start: int, train_all: bool) -> TokenRow:
    """Opening, pieces, closing. Without a response there is nothing to train, its end neither."""
    tokens = [*opening_of(script.opening, next(filter(None, parts), []))]
    trained = [False] * len(tokens)
    excluded = [False] * len(tokens)
    response_start = 0
    for piece, ids in zip(script.pieces, parts, strict=True):
        if piece.trained and not tokens:  # as in a document: its first token counts too
            tokens, trained, excluded = [document_start], [False], [False]
        response_start = len(tokens) if piece.trained else response_start
        tokens += ids
        trained += [piece.trained] * len(ids)
        excluded += [piece.excluded] * len(ids)
    if any(trained):
        doubled = script.closing[-1:] == tuple(tokens[-1:])  # the text brought its own end token
        closing = () if doubled else script.closing
        tokens += closing
        trained += [True] * len(closing)
        if train_all:
            excluded += [False] * len(closing)
            trained = [not one for one in excluded]
        trained[0] = False
    return TokenRow(np.array(tokens, np.int32), np.array(trained, bool), response_start)
