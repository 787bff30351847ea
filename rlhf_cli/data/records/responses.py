"""A prompt and the responses to it, in one form: all text, or all messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_cli.data.reading.raw import show_value
from rlhf_cli.data.records import fields
from rlhf_cli.data.records.fields import Message, Messages, Prompt, Response
from rlhf_cli.data.records.row_errors import Malformed
from rlhf_cli.data.records.transcripts import HUMAN, MARK


def with_responses(given: Any, said: Mapping[str, Any]) -> tuple[Prompt, list[Response]]:
    """The prompt, and each response as what follows it.

    A response may repeat the prompt: a whole conversation, or a transcript with turn marks. That
    copy is taken off. A text prompt before messages is the user's message.

    Args:
        given: value of `prompt`.
        said: name of each response, for messages to the user, and its value.

    Raises:
        Malformed: a value is of a wrong type, or a response begins with another prompt.
        Refused: a response is empty.
    """
    prompt = fields.prompt("prompt", given)
    turns = {
        name: fields.messages(name, value)
        for name, value in said.items()
        if isinstance(value, list)
    }
    if isinstance(prompt, str) and not turns:
        return _after_text(prompt, said)
    if isinstance(prompt, str):
        prompt = _as_messages(prompt, turns)
    return prompt, [
        _after(name, turns[name], prompt) if name in turns else fields.response(name, value, prompt)
        for name, value in said.items()
    ]


def _after_text(prompt: str, said: Mapping[str, Any]) -> tuple[str, list[Response]]:
    texts = {name: fields.text(name, value) for name, value in said.items()}
    marked = HUMAN in prompt or MARK in prompt
    if marked and all(text.startswith(prompt) for text in texts.values()):
        texts = {name: text.removeprefix(prompt) for name, text in texts.items()}
        if all(text.startswith(MARK) for text in texts.values()):
            texts = {name: text.removeprefix(MARK) for name, text in texts.items()}
            prompt += MARK
    return prompt, [fields.response(name, text, prompt) for name, text in texts.items()]


def _as_messages(prompt: str, turns: Mapping[str, Messages]) -> Messages:
    """A text prompt beside messages: the user's message, or the conversation that ends with it."""
    name, first = next(iter(turns.items()))
    if first[0].role == "assistant":
        return (Message("user", prompt),)
    users = [i for i, turn in enumerate(first) if turn.role == "user"]
    asked = [i for i in users if first[i].content.strip() == prompt.strip()]
    if not asked and all(first[i].content.strip() in prompt for i in users):
        asked = users  # the text is the whole conversation, written out
    if not asked:
        raise Malformed(
            f"{name}: begins with the {first[0].role}'s {show_value(first[0].content)}, and none "
            "of its messages is the prompt; need the assistant's messages alone, or the "
            "conversation from the prompt on"
        )
    return first[: asked[-1] + 1]


def _after(name: str, turns: Messages, prompt: Messages) -> Response:
    """Messages without their own copy of the prompt."""
    if turns[: len(prompt)] == prompt and len(turns) > len(prompt):
        return fields.replies(name, turns[len(prompt) :])
    if turns[0].role in ("system", "user") and prompt[-1].role != "assistant":
        raise Malformed(
            f"{name}: begins with the {turns[0].role}'s {show_value(turns[0].content)} after a "
            f"prompt that ends with the {prompt[-1].role}'s; need the assistant's messages alone, "
            "or the whole conversation from the prompt's first message on"
        )
    return fields.replies(name, turns)


def without_shared_turns(
    prompt: Prompt, chosen: Response, rejected: Response
) -> tuple[Prompt, Response, Response]:
    """A pair whose responses begin with the same turns: these are a part of the prompt."""
    if isinstance(prompt, str) or isinstance(chosen, str) or isinstance(rejected, str):
        return prompt, chosen, rejected
    sides = zip(chosen, rejected, strict=False)
    at = next((i for i, (one, other) in enumerate(sides) if one != other), 0)
    if not chosen[at].role == rejected[at].role == "assistant":
        return prompt, chosen, rejected
    return prompt + chosen[:at], chosen[at:], rejected[at:]
