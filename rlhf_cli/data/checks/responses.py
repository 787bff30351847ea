"""Checks of what responses are like: role marks in them, and ends in the middle of a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rlhf_cli.data.checks.content import CheckedData
from rlhf_cli.data.checks.finding import Finding, Severity, Tally, excerpt

WARN_SHARE = 0.01
"""Share of rows with role marks from which on they are a warning."""

MIN_WORDS = 30
"""Words of a response that is expected to be sentences; an answer or a command is short."""

MIN_LINE_WORDS = 8
"""Words of its last line; items of lists, names and signatures have fewer."""

MIN_UNFINISHED = 0.005
"""Share of long responses that stop within a sentence from which on it is reported."""

_ROLE_MARK = re.compile(r"(?:\A|\n)[ \t]*(?:Human|User|Assistant|System)[ \t]*:(?!\S*//)")
_UNFINISHED = re.compile(
    r"(?:[,(]|\b(?:the|an?|and|or|of|to|in|with|for|from|as|is|are|your|their|its|our|my|that|which"
    r"|if|because|but))\Z",
    re.IGNORECASE,
)
"""Words and signs after which a sentence goes on; people leave out a full stop, but not what
follows these."""


def check_role_marks(data: CheckedData) -> Iterator[Finding]:
    """Check for responses with a line that begins with the name of a role and a colon."""
    tally = Tally()
    for location, texts in data.texts if data.stage != "pretrain" else ():
        for text in texts:
            if text.is_response and (found := _ROLE_MARK.search(text.text)):
                tally.add(location, f"{text.place}: {excerpt(text.text, found.end())}")
    severity: Severity = "warning" if tally.count >= WARN_SHARE * data.total else "note"
    yield from tally.report(
        "role-marks-in-responses",
        severity,
        "responses with a line that begins with Human:, User:, Assistant: or System:, as where a "
        "transcript was split at the wrong place",
        data.total,
        advice="Remove the marks, or split the turns: the model learns to write them",
    )


def check_unfinished(data: CheckedData) -> Iterator[Finding]:
    """Report long responses that stop in the middle of a sentence."""
    tally, long = Tally(), 0
    for location, texts in data.texts if data.stage != "pretrain" else ():
        responses = [text for text in texts if text.is_response]
        for text in responses:
            stripped = text.text.rstrip()
            if stripped.count(" ") + 1 < MIN_WORDS:
                continue
            long += 1
            last_line = stripped.rpartition("\n")[2]
            if last_line.count(" ") + 1 >= MIN_LINE_WORDS and _UNFINISHED.search(stripped):
                tally.add(location, f"{text.place}: ... {excerpt(stripped[-50:])}")
    if tally.count < MIN_UNFINISHED * long:
        return
    yield from tally.report(
        "unfinished-responses",
        "note",
        f"rows with a response of {MIN_WORDS} words or more that stops in the middle of a sentence",
        data.total,
        advice="Check a few: responses that were cut at a length limit teach to stop anywhere",
    )
