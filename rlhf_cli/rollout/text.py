"""Responses as text: all that was generated, but for the tokens that end or pad it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TextStreamer


def response_text(
    tokenizer: Any, tokens: Sequence[int], ends: Sequence[int], *, skip_special_tokens: bool = False
) -> str:
    """The text of a response.

    Args:
        tokenizer: decodes.
        tokens: of the response.
        ends: tokens that end a response.
        skip_special_tokens: leave out every special token; else only ends and padding, so that what
            has a meaning of its own (the borders of a thought, a label) is seen.
    """
    silent = {*ends, tokenizer.pad_token_id}
    kept = [token for token in tokens if token not in silent]
    text: str = tokenizer.decode(
        kept, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
    )
    return text


class ResponseStreamer(TextStreamer):  # type: ignore[misc]  # transformers has no types
    """Prints a response while it is generated, as `response_text` gives it.

    Args:
        tokenizer: decodes.
        ends: tokens that end a response.
    """

    def __init__(self, tokenizer: Any, ends: Sequence[int]) -> None:
        super().__init__(tokenizer, skip_prompt=True, clean_up_tokenization_spaces=False)
        self.silent = {*ends, tokenizer.pad_token_id}

    def put(self, value: Any) -> None:
        """Take the tokens of the prompt, then one token after the other."""
        if self.next_tokens_are_prompt or not {*value.flatten().tolist()} & self.silent:
            super().put(value)
