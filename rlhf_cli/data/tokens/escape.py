"""Special tokens that a message spells stay text: nobody closes a turn by quoting its end."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rlhf_cli.data.records.fields import BREAK


class Escaper:
    """Puts a BREAK into every occurrence of some tokens in a text.

    Args:
        tokens: their texts; of one character alone there is nothing to break.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        listed = sorted({token for token in tokens if len(token) > 1}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, listed))) if listed else None

    def text(self, text: str) -> str:
        """The text, in which the tokenizer finds none of the tokens."""
        while self._pattern is not None and self._pattern.search(text):
            text = self._pattern.sub(lambda found: found[0][0] + BREAK + found[0][1:], text)
        return text

    def value(self, value: Any) -> Any:
        """The same of every text in a JSON value."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        return [self.value(item) for item in value] if isinstance(value, list | tuple) else value
