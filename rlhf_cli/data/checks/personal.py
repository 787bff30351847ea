"""Checks of credentials and personal data. Messages name the kind, and never show the text."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_cli.data.checks.content import CheckedData
from rlhf_cli.data.checks.finding import Finding, Tally
from rlhf_cli.data.checks.secret_patterns import find_personal_data, find_secrets


def check_secrets(data: CheckedData) -> Iterator[Finding]:
    """Check for text that looks like a credential, such as an API key."""
    tally = Tally()
    for location, texts in data.texts:
        for text in texts:
            for kind, start, end in find_secrets(text.text):
                tally.add(location, f"{text.place}: {kind}, {end - start} characters at {start}")
    yield from tally.report(
        "secrets",
        "warning",
        "text that looks like a credential; a model can repeat what it was trained on",
        data.total,
        advice="Revoke it if it is real, and replace it by a placeholder",
    )


def check_personal_data(data: CheckedData) -> Iterator[Finding]:
    """Check for e-mail addresses and phone numbers."""
    tally = Tally()
    for location, texts in data.texts:
        for text in texts:
            if kind := find_personal_data(text.text):
                tally.add(location, f"{text.place}: {kind}")
    yield from tally.report(
        "personal-data",
        "note",
        "e-mail addresses or phone numbers",
        data.total,
        advice="Replace them by placeholders if they belong to people",
    )
