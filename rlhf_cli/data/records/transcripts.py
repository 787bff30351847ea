r"""A preference row without a prompt: two transcripts, and the prompt is what they share.

The transcripts are lists of messages, or text with the turn marks of Bai et al. 2022
(arXiv:2204.05862), `\n\nHuman:` and `\n\nAssistant:`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlhf_cli.data.records.fields import Prompt, Response, replies, response
from rlhf_cli.data.records.row_errors import Malformed, Refused

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
