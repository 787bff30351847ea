"""Where a response ends: end tokens and stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_cli.rollout.config import SamplingConfig

SLACK = 4
"""Tokens read before the longest stop string could begin, since some have no text."""


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a response: the tokenizer's and those of the model's generation config."""
    config = getattr(model, "generation_config", None)  # a reward model has none
    listed = getattr(config, "eos_token_id", None)
    others = listed if isinstance(listed, list) else [] if listed is None else [listed]
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return list(dict.fromkeys([*own, *others]))


def add_end_token(model: Any, tokenizer: Any, token: int | None) -> None:
    """Let responses of a model end at one more token, beside those where they end already.

    Args:
        model: a transformers model; its generation config, which is saved with it, is changed.
        tokenizer: the model's.
        token: the chat template's end of a turn, where the prompts are chats; else none.
    """
    if token is None or not model.can_generate():
        return
    ends = list(dict.fromkeys([*end_tokens(model, tokenizer), token]))
    model.generation_config.eos_token_id = ends


class Ends:
    """Says whether a response has ended by itself.

    Args:
        model: its generation config may name end tokens.
        tokenizer: has an end token, and writes the text in which stop strings are looked for.
        sampling: the stop strings.

    Attributes:
        tokens: each ends a response.
    """

    def __init__(self, model: Any, tokenizer: Any, sampling: SamplingConfig) -> None:
        self.tokens = end_tokens(model, tokenizer)
        self._ends = frozenset(self.tokens)
        self._tokenizer = tokenizer
        self._stop = sampling.stop
        # a token has a byte of text at least, so this many hold any string that has just ended
        self._window = max((len(s.encode()) for s in self._stop), default=0) + SLACK

    def reached(self, written: Sequence[int]) -> bool:
        """Whether the last token is an end, or completes a stop string, wherever tokens divide."""
        if written[-1] in self._ends:
            return True
        if not self._stop:
            return False
        text = self._tokenizer.decode(written[-self._window :])
        return any(string in text for string in self._stop)
