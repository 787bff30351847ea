"""A preference row without a prompt: two transcripts, and the prompt is what they share."""

from __future__ import annotations

from rlhf_cli.data.records.fields import Messages, Prompt, Response, replies, response
from rlhf_cli.data.records.row_errors import Malformed, Refused

MARK = "\n\nAssistant:"
"""Begins the assistant's turn in the transcripts of Bai et al. 2022 (arXiv:2204.05862)."""

_DIFFERENT = "the two transcripts have different prompts"


def split_transcripts(chosen: Prompt, rejected: Prompt) -> tuple[Prompt, Response, Response]:
    """Prompt, chosen and rejected response.

    Messages: all before the last, which are to be the same. Text: up to the last mark.
    """
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _split_texts(chosen, rejected)
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise Malformed("chosen, rejected: one is text, one a list; need the same form for both")
    return _split_messages(replies("chosen", chosen), replies("rejected", rejected))


def _split_texts(chosen: str, rejected: str) -> tuple[str, Response, Response]:
    cuts = [text.rfind(MARK) + len(MARK) for text in (chosen, rejected)]
    if any(cut < len(MARK) for cut in cuts):
        raise Malformed(
            "no column prompt, and no turn mark '\\n\\nAssistant:' in chosen and rejected to tell "
            "it by. See docs/data.md"
        )
    prompt = chosen[: cuts[0]]
    if prompt != rejected[: cuts[1]]:
        raise Refused(_DIFFERENT)
    first = response("chosen", chosen[cuts[0] :], prompt)
    return prompt, first, response("rejected", rejected[cuts[1] :], prompt)


def _split_messages(chosen: Messages, rejected: Messages) -> tuple[Messages, Messages, Messages]:
    if chosen[:-1] != rejected[:-1]:
        raise Refused(_DIFFERENT)
    if not chosen[:-1]:
        raise Refused("the two transcripts have no prompt")
    return chosen[:-1], chosen[-1:], rejected[-1:]
