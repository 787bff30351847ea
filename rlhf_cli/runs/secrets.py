"""The secrets of this command: kept out of what it writes and says."""

from typing import Any

from rlhf_cli.config.references import References, environment_values, with_references

HIDDEN = "***"
SHORTEST = 6
"""Shorter values are not looked for in messages, where they would be found in ordinary words."""

_references: dict[str, str] = {}


def begin(references: References) -> None:
    """Start a command, or the part of a rank in it, whose configuration has these references."""
    _references.clear()
    _references.update(references)


def references() -> dict[str, str]:
    """Key -> the text that is written in place of its value."""
    return dict(_references)


def hide(tree: dict[str, Any]) -> dict[str, Any]:
    """A configuration with references in place of secrets from the environment."""
    hidden: dict[str, Any] = with_references(tree, _references)
    return hidden


def redact(text: str) -> str:
    """A text without the secrets of the environment that the configuration refers to."""
    for value in environment_values(_references):
        if len(value) >= SHORTEST:
            text = text.replace(value, HIDDEN)
    return text
