"""Scripts as tokens, with a mask of those that are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.data.scripts import Piece, Script

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


def tokenize(scripts: Sequence[Script], tokenizer: Any, *, train_all: bool) -> list[TokenRow]:
    """One row a script; all of them in one call, which the tokenizer spreads over the cores.

    Args:
        scripts: what to tokenize.
        tokenizer: a fast one; special tokens are written in the scripts already.
        train_all: train the prompts too.
    """
    rules = tokenizer.backend_tokenizer
    rules.no_truncation()
    rules.no_padding()
    pieces = [piece for script in scripts for piece in script.pieces]
    texts = [piece.text for piece in pieces]
    if all(isinstance(piece.trained, bool) for piece in pieces):
        found = rules.encode_batch_fast(texts, add_special_tokens=False)  # keeps no offsets
    else:
        found = rules.encode_batch(texts, add_special_tokens=False)
    parts = iter([_part(*pair) for pair in zip(pieces, found, strict=True)])
    return [_join(script, [next(parts) for _ in script.pieces], train_all) for script in scripts]


def _part(piece: Piece, encoding: Any) -> TokenRow:
    """A piece by itself; `response_start` is where its last trained run begins."""
    tokens = np.array(encoding.ids, np.int32)
    if isinstance(piece.trained, bool):
        start = 0 if piece.trained else len(tokens)
        return TokenRow(tokens, np.full(len(tokens), piece.trained), start)
    starts, ends = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
    starts = np.minimum(starts, ends - 1)  # a byte-level space can have an empty span at its end
    trained = last = np.zeros(len(tokens), bool)
    for start, end in piece.trained:
        last = np.maximum(starts, start) < np.minimum(ends, end)
        trained = trained | last
    return TokenRow(tokens, trained, int(last.argmax()) if last.any() else len(tokens))


def _join(script: Script, parts: list[TokenRow], train_all: bool) -> TokenRow:
    """Opening, pieces, closing. Without a response there is nothing to train, its end neither."""
    opening = np.array(script.opening, np.int32)
    tokens = np.concatenate([opening, *(part.tokens for part in parts)])
    trained = np.concatenate([np.zeros(len(opening), bool), *(part.trained for part in parts)])
    response_start = len(tokens) - len(parts[-1].tokens) + parts[-1].response_start
    if not trained.any():
        return TokenRow(tokens, trained, response_start)
    doubled = script.closing[-1:] == tuple(tokens[-1:])  # the text brought its own end token
    closing = np.array(() if doubled else script.closing, np.int32)
    tokens = np.concatenate([tokens, closing])
    trained = np.concatenate([trained, np.ones(len(closing), bool)]) | train_all
    trained[0] = False
    return TokenRow(tokens, trained, response_start)
