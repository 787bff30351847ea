"""Split a row's values into a prompt and the responses to it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_cli.data.records import fields
from rlhf_cli.data.records.fields import Message, Messages, Prompt, Response, replies, response
from rlhf_cli.data.report import Malformed, Refused
from rlhf_cli.data.sources.base import show_value

HUMAN, MARK = "\n\nHuman:", "\n\nAssistant:"


EARLY = "the two transcripts differ before their last turn, so the responses have several turns"


_TURN = re.compile(f"(?={HUMAN}|{MARK})")


_DIFFERENT = "the two transcripts have different prompts"


def split_transcripts(chosen: Prompt, rejected: Prompt) -> tuple[Prompt, Response, Response]:
    """Prompt, chosen and rejected response.

    The prompt is all that stands before the first of the assistant's turns that differs. From there
    on each transcript is the response, which can have several turns.

    Raises:
        Malformed: one is text and the other a list, or a text has no turn marks.
        Refused: they differ first in what was asked, or one ends where the other goes on.
    """
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _split_texts(chosen, rejected)
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise Malformed("chosen, rejected: one is text, one a list; need the same form for both")
    first, second = replies("chosen", chosen), replies("rejected", rejected)
    roles = [turn.role for turn in first], [turn.role for turn in second]
    at = _fork(first, second, [[role == "assistant" for role in side] for side in roles])
    return first[:at], first[at:], second[at:]


def _split_texts(chosen: str, rejected: str) -> tuple[str, Response, Response]:
    first, second = turns_of_text(chosen), turns_of_text(rejected)
    spoken = [[turn.startswith(MARK) for turn in side] for side in (first, second)]
    if not all(map(any, spoken)):
        raise Malformed(
            "no column prompt, and no turn mark '\\n\\nAssistant:' in chosen and rejected to tell "
            "it by. See rlhf docs data"
        )
    prompt = "".join(first[: _fork(first, second, spoken)]) + MARK
    said = [text[len(prompt) :] for text in (chosen, rejected)]
    return prompt, response("chosen", said[0], prompt), response("rejected", said[1], prompt)


def turns_of_text(text: str) -> list[str]:
    """The turns of a transcript, each with its mark; first what stands before the first mark."""
    return _TURN.split(text)


def has_several_turns(response: Response) -> bool:
    """Whether somebody else speaks between the assistant's turns of a response."""
    if isinstance(response, str):
        return len(turns_of_text(response)) > 1
    return any(turn.role == "user" for turn in response)


def parts_of_response(prompt: str, response: str) -> list[tuple[str, bool]]:
    """A text response in parts, each with whether the assistant says it.

    One part, unless the prompt ends with the assistant's mark and the response has turns of a human
    among the assistant's. The turn marks themselves are not trained.
    """
    turns = turns_of_text(response) if prompt.endswith(MARK) else [response]
    parts: list[tuple[str, bool]] = []
    for number, turn in enumerate(turns):
        if number and turn.startswith(MARK):
            parts += [(MARK, False), (turn.removeprefix(MARK), True)]
        else:
            parts.append((turn, number == 0))
    return [part for part in parts if part[0]]


def _fork(first: Sequence[object], second: Sequence[object], spoken: list[list[bool]]) -> int:
    """Index of the turn at which two transcripts part: one of the assistant's in both.

    Args:
        first: turns of the one.
        second: turns of the other.
        spoken: of both, True for the assistant's turns.
    """
    shared = min(len(first), len(second))
    at = next((i for i in range(shared) if first[i] != second[i]), shared)
    if at == len(first) == len(second):
        at -= 1  # they are equal, which is said of such a pair elsewhere
    if not (at < shared and spoken[0][at] and spoken[1][at]):
        raise Refused(_DIFFERENT)
    if at == 0:
        raise Refused("the two transcripts have no prompt")
    return at


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
