"""The special tokens that stand around text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_cli.data.tokens.template import ChatTemplate
from rlhf_cli.errors import ModelError


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


def boundary_tokens(tokenizer: Any) -> set[int]:
    """Tokens that stand around texts and say nothing: begin, end, padding and the ends of turns.

    Other special and added tokens, such as labels and the borders of a thought, count as text.
    """
    named = ("bos", "eos", "pad", "sep", "cls")
    found = {getattr(tokenizer, f"{name}_token_id", None) for name in named}
    return {int(token) for token in {*found, turn_end(tokenizer)} if token is not None}


def turn_end(tokenizer: Any) -> int | None:
    """The token that the chat template writes behind what an assistant says, if there is one."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    token = ChatTemplate(tokenizer).turn_end
    return int(tokenizer.convert_tokens_to_ids(token)) if token else None


def _around(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the tokenizer adds in front of a letter and behind it."""
    found = tokenizer("a", return_special_tokens_mask=True)
    ids, added = found["input_ids"], found["special_tokens_mask"]
    text = [index for index, special in enumerate(added) if not special]
    if not text:  # the letter is unknown and leaves no token; an end token cannot be in front
        end = len(ids) - ids.count(tokenizer.eos_token_id)
        return tuple(ids[:end]), tuple(ids[end:])
    return tuple(ids[: text[0]]), tuple(ids[text[-1] + 1 :])
