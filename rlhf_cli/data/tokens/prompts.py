"""Prompts as the token ids that a model continues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_cli.data.records.fields import Message, Prompt
from rlhf_cli.data.records.row_errors import Refused
from rlhf_cli.data.tokens.chat import ChatRenderer
from rlhf_cli.data.tokens.pieces import Piece
from rlhf_cli.data.tokens.specials import find_specials
from rlhf_cli.data.tokens.tokenize import PieceEncoder
from rlhf_cli.errors import DataError
from rlhf_cli.runs import artifact


def becomes_message(template: str, model: str, tokenizer: Any) -> bool:
    """Whether a text prompt is a user's message in the chat template.

    Args:
        template: `always`, `never`, or `auto`: as in the rows that the model was trained on, and
            where that is not known, wherever there is a template.
        model: its path, or a run's.
        tokenizer: perhaps with a template.
    """
    if template != "auto":
        return template == "always"
    facts = artifact.read(Path(model).expanduser())
    return bool(tokenizer.chat_template) and facts.get("trained_on") != "text"


class PromptEncoder:
    """Writes prompts as the token ids after which a response begins.

    Args:
        tokenizer: its template is used for messages, and for text `as_message`.
        as_message: text is a user's message; else it stands as it is, with only the tokens that the
            tokenizer itself puts in front. An empty text is the start of a document.
    """

    def __init__(self, tokenizer: Any, *, as_message: bool) -> None:
        self.tokenizer = tokenizer
        self.specials = find_specials(tokenizer)
        self.pieces = PieceEncoder(tokenizer)
        self.as_message = as_message

    def as_given(self, prompt: Prompt) -> Prompt:
        """What is written as tokens: the prompt itself, or a text as a user's message."""
        if isinstance(prompt, str) and self.as_message:
            return (Message("user", prompt),)
        return prompt

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of one prompt.

        Raises:
            DataError: the chat template does not take it.
            ModelError: messages, and the tokenizer has no chat template.
        """
        prompt = self.as_given(prompt)
        if isinstance(prompt, str):
            found = [*self.specials.opening, *self._ids((Piece(prompt),))]
            return found or [self.specials.document_start]
        try:
            renderer = ChatRenderer(self.tokenizer)
            text = renderer.render(prompt, generation_prompt=True)
            return self._ids(renderer.pieces(prompt, text, trained=()))
        except Refused as error:
            raise DataError(str(error)) from error

    def _ids(self, pieces: tuple[Piece, ...]) -> list[int]:
        [parts] = self.pieces.encode([pieces])
        return [token for part in parts for token in part]
