"""Prompts as the token ids that a model continues."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from rlhf_cli.data.records.fields import Message, Prompt
from rlhf_cli.data.tokens.chat import ChatRenderer
from rlhf_cli.data.tokens.pieces import Piece
from rlhf_cli.data.tokens.specials import find_specials
from rlhf_cli.data.tokens.tokenize import PieceEncoder, opening_of
from rlhf_cli.runs import artifact


def becomes_message(template: str, model: str, revision: str, tokenizer: Any) -> bool:
    """Whether a text prompt is a user's message in the chat template.

    Args:
        template: `always`, `never`, or `auto`: as in the rows that the model was trained on, and
            where that is not known, wherever there is a template.
        model: its path, or a run's, or a hub id.
        revision: of a hub id.
        tokenizer: perhaps with a template.
    """
    if template != "auto":
        return template == "always"
    folder = artifact.find_model_folder(model, revision)
    facts = artifact.read(folder) if folder else {}
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

    @cached_property
    def renderer(self) -> ChatRenderer:
        """Made when the first chat comes: text needs no template."""
        return ChatRenderer(self.tokenizer)

    def as_given(self, prompt: Prompt) -> Prompt:
        """What is written as tokens: the prompt itself, or a text as a user's message."""
        if isinstance(prompt, str) and self.as_message:
            return (Message("user", prompt),)
        return prompt

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of one prompt.

        Raises:
            Refused: the chat template does not take it, or leaves out a part of it.
            ModelError: messages, and the tokenizer has no chat template.
        """
        prompt = self.as_given(prompt)
        if isinstance(prompt, str):
            ids = self._ids((Piece(prompt),))
            return [*opening_of(self.specials.opening, ids), *ids] or [self.specials.document_start]
        return self._ids(self.renderer.prompt(prompt))

    @property
    def used_template(self) -> bool:
        """Whether any prompt so far was a chat."""
        return "renderer" in vars(self)

    @property
    def turn_end(self) -> int | None:
        """The token that ends a response to a chat; none where no prompt so far was one."""
        token = self.renderer.template.turn_end if self.used_template else ""
        return int(self.tokenizer.convert_tokens_to_ids(token)) if token else None

    @property
    def unwritten(self) -> list[str]:
        """What the template did not write of messages that were taken all the same."""
        return self.renderer.checker.unwritten if self.used_template else []

    def _ids(self, pieces: tuple[Piece, ...]) -> list[int]:
        [parts] = self.pieces.encode([pieces])
        return [token for part in parts for token in part]
