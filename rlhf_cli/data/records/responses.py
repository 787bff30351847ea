r"""Split a row's values into one prompt and the responses to it, all text or all messages.

A preference row without a prompt has two transcripts; the prompt is what they share. Transcripts
are lists of messages, or text with the turn marks of Bai et al. 2022 (arXiv:2204.05862),
`\n\nHuman:` and `\n\nAssistant:`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_cli.data.records import fields
from rlhf_cli.data.records.fields import Message, Messages, Prompt, Response
from rlhf_cli.data.report import MalformedRow, RefusedRow
from rlhf_cli.data.sources.base import describe_value

HUMAN_MARK, ASSISTANT_MARK = "\n\nHuman:", "\n\nAssistant:"

MULTI_TURN_NOTE = (
    "the two transcripts differ before their last turn, so the responses have several turns"
)

_TURN = re.compile(f"(?={HUMAN_MARK}|{ASSISTANT_MARK})")
_DIFFERENT = "the two transcripts have different prompts"


def split_prompt_and_responses(
    given: Any, responses: Mapping[str, Any]
) -> tuple[Prompt, list[Response]]:
    """Parse a prompt and the responses to it.

    If a response repeats the prompt (a whole conversation, or a transcript with turn marks), that
    copy is removed. A text prompt beside messages becomes the user's message.

    Args:
        given: value of `prompt`.
        responses: value of each response, by its name in error messages.

    Raises:
        MalformedRow: a value has the wrong type, or a response begins with another prompt.
        RefusedRow: a response is empty.
    """
    prompt = fields.parse_prompt("prompt", given)
    chats = {
        name: fields.parse_messages(name, value)
        for name, value in responses.items()
        if isinstance(value, list)
    }
    if isinstance(prompt, str) and not chats:
        return _split_text_responses(prompt, responses)
    if isinstance(prompt, str):
        prompt = _prompt_to_messages(prompt, chats)
    return prompt, [
        _remove_prompt(name, chats[name], prompt)
        if name in chats
        else fields.parse_response(name, value, prompt)
        for name, value in responses.items()
    ]


def _split_text_responses(prompt: str, responses: Mapping[str, Any]) -> tuple[str, list[Response]]:
    texts = {name: fields.parse_text(name, value) for name, value in responses.items()}
    if has_turn_marks(prompt) and all(text.startswith(prompt) for text in texts.values()):
        texts = {name: text.removeprefix(prompt) for name, text in texts.items()}
        if all(text.startswith(ASSISTANT_MARK) for text in texts.values()):
            texts = {name: text.removeprefix(ASSISTANT_MARK) for name, text in texts.items()}
            prompt += ASSISTANT_MARK
    return prompt, [fields.parse_response(name, text, prompt) for name, text in texts.items()]


def _prompt_to_messages(prompt: str, chats: Mapping[str, Messages]) -> Messages:
    """Return the user's message, or the conversation that ends with it, for a text prompt."""
    name, first = next(iter(chats.items()))
    if first[0].role == "assistant":
        return (Message("user", prompt),)
    users = [i for i, turn in enumerate(first) if turn.role == "user"]
    matching = [i for i in users if first[i].content.strip() == prompt.strip()]
    if not matching and all(first[i].content.strip() in prompt for i in users):
        matching = users  # the text is the whole conversation, written out
    if not matching:
        raise MalformedRow(
            f"{name}: begins with the {first[0].role}'s {describe_value(first[0].content)}, and "
            "none of its messages is the prompt; need the assistant's messages alone, or the "
            "conversation from the prompt on"
        )
    return first[: matching[-1] + 1]


def _remove_prompt(name: str, turns: Messages, prompt: Messages) -> Response:
    """Remove a copy of the prompt from the beginning of a response."""
    if turns[: len(prompt)] == prompt and len(turns) > len(prompt):
        return fields.require_assistant_last(name, turns[len(prompt) :])
    if turns[0].role in ("system", "user") and prompt[-1].role != "assistant":
        raise MalformedRow(
            f"{name}: begins with the {turns[0].role}'s {describe_value(turns[0].content)} after a "
            f"prompt that ends with the {prompt[-1].role}'s; need the assistant's messages alone, "
            "or the whole conversation from the prompt's first message on"
        )
    return fields.require_assistant_last(name, turns)


def move_shared_turns_to_prompt(
    prompt: Prompt, chosen: Response, rejected: Response
) -> tuple[Prompt, Response, Response]:
    """Move the turns with which both responses of a pair begin to the end of the prompt."""
    if isinstance(prompt, str) or isinstance(chosen, str) or isinstance(rejected, str):
        return prompt, chosen, rejected
    sides = zip(chosen, rejected, strict=False)
    at = next((i for i, (one, other) in enumerate(sides) if one != other), 0)
    if not chosen[at].role == rejected[at].role == "assistant":
        return prompt, chosen, rejected
    return prompt + chosen[:at], chosen[at:], rejected[at:]


def split_transcripts(chosen: Prompt, rejected: Prompt) -> tuple[Prompt, Response, Response]:
    """Split two transcripts into their common prompt, the chosen and the rejected response.

    The prompt ends before the first assistant turn that differs. The rest of each transcript is the
    response, which can have several turns.

    Raises:
        MalformedRow: one is text and the other a list, or a text has no turn marks.
        RefusedRow: they first differ in a turn that is not the assistant's, or one ends early.
    """
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _split_texts(chosen, rejected)
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise MalformedRow("chosen, rejected: one is text, one a list; need the same form for both")
    first = fields.require_assistant_last("chosen", chosen)
    second = fields.require_assistant_last("rejected", rejected)
    is_assistant = [[turn.role == "assistant" for turn in side] for side in (first, second)]
    at = _first_different_turn(first, second, is_assistant)
    return first[:at], first[at:], second[at:]


def _split_texts(chosen: str, rejected: str) -> tuple[str, Response, Response]:
    first, second = split_turns(chosen), split_turns(rejected)
    is_assistant = [[turn.startswith(ASSISTANT_MARK) for turn in side] for side in (first, second)]
    if not all(map(any, is_assistant)):
        raise MalformedRow(
            "no column prompt, and no turn mark '\\n\\nAssistant:' in chosen and rejected to tell "
            "it by. See rlhf docs data"
        )
    at = _first_different_turn(first, second, is_assistant)
    prompt = "".join(first[:at]) + ASSISTANT_MARK
    texts = {"chosen": chosen[len(prompt) :], "rejected": rejected[len(prompt) :]}
    one, other = (fields.parse_response(name, text, prompt) for name, text in texts.items())
    return prompt, one, other


def _first_different_turn(
    first: Sequence[object], second: Sequence[object], is_assistant: list[list[bool]]
) -> int:
    """Return the index of the first turn that differs, which is the assistant's in both.

    Args:
        first: turns of one transcript.
        second: turns of the other.
        is_assistant: for both, True for the assistant's turns.
    """
    shared = min(len(first), len(second))
    at = next((i for i in range(shared) if first[i] != second[i]), shared)
    if at == len(first) == len(second):
        at -= 1  # equal transcripts are refused later, as chosen equals rejected
    if not (at < shared and is_assistant[0][at] and is_assistant[1][at]):
        raise RefusedRow(_DIFFERENT)
    if at == 0:
        raise RefusedRow("the two transcripts have no prompt")
    return at


def has_turn_marks(text: str) -> bool:
    """Whether a text contains the mark of a human's or an assistant's turn."""
    return HUMAN_MARK in text or ASSISTANT_MARK in text


def split_turns(text: str) -> list[str]:
    """Split a transcript into turns, each with its mark; first comes the text before any mark."""
    return _TURN.split(text)


def has_several_turns(response: Response) -> bool:
    """Whether a response contains turns of somebody else than the assistant."""
    if isinstance(response, str):
        return len(split_turns(response)) > 1
    return any(turn.role == "user" for turn in response)


def split_response_turns(prompt: str, response: str) -> list[tuple[str, bool]]:
    """Split a text response into parts, each with whether it is the assistant's text.

    There is one part, unless the prompt ends with the assistant's mark and the response contains
    human turns. Turn marks are not the assistant's text.
    """
    turns = split_turns(response) if prompt.endswith(ASSISTANT_MARK) else [response]
    parts: list[tuple[str, bool]] = []
    for number, turn in enumerate(turns):
        if number and turn.startswith(ASSISTANT_MARK):
            parts += [(ASSISTANT_MARK, False), (turn.removeprefix(ASSISTANT_MARK), True)]
        else:
            parts.append((turn, number == 0))
    return [part for part in parts if part[0]]
