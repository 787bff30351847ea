"""Stop criteria of a response: end tokens and stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_cli.rollout.config import SamplingConfig

EXTRA_TOKENS = 4
"""Tokens decoded in addition to the longest stop string, since some tokens have no text."""


def end_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """End tokens of a response: the tokenizer's and those of the model's generation config."""
    config = getattr(model, "generation_config", None)  # a reward model has none
    listed = getattr(config, "eos_token_id", None)
    others = listed if isinstance(listed, list) else [] if listed is None else [listed]
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return list(dict.fromkeys([*own, *others]))


def add_end_token(model: Any, tokenizer: Any, token: int | None) -> None:
    """Add an end token to a model's generation config, which is saved with the model.

    Args:
        model: a transformers model.
        tokenizer: the model's tokenizer.
        token: the chat template's end of a turn, where the prompts are chats; None adds nothing.
    """
    if token is None or not model.can_generate():
        return
    end_ids = list(dict.fromkeys([*end_token_ids(model, tokenizer), token]))
    model.generation_config.eos_token_id = end_ids


class StopCriteria:
    """Whether a response has ended by an end token or a stop string.

    Args:
        model: its generation config may name end tokens.
        tokenizer: has an end token, and decodes the text in which stop strings are searched.
        sampling: the stop strings.

    Attributes:
        end_ids: token ids, each of which ends a response.
    """

    def __init__(self, model: Any, tokenizer: Any, sampling: SamplingConfig) -> None:
        self.end_ids = end_token_ids(model, tokenizer)
        self._end_set = frozenset(self.end_ids)
        self._tokenizer = tokenizer
        self._strings = sampling.stop
        # a token has at least one byte of text, so this many hold any string that has just ended
        self._window = max((len(s.encode()) for s in self._strings), default=0) + EXTRA_TOKENS

    def is_met(self, token_ids: Sequence[int]) -> bool:
        """Whether the last token is an end token or completes a stop string."""
        if token_ids[-1] in self._end_set:
            return True
        if not self._strings:
            return False
        text = self._tokenizer.decode(token_ids[-self._window :])
        return any(string in text for string in self._strings)
