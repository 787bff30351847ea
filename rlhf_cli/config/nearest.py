"""The nearest of what there is to what was typed."""

import difflib
import os
from collections.abc import Iterable


def nearest(word: str, choices: Iterable[str], cutoff: float = 0.6) -> str:
    """The choice most like a word, or nothing if none is."""
    return next(iter(difflib.get_close_matches(word, list(choices), n=1, cutoff=cutoff)), "")


def nearest_path(value: str) -> str:
    """A file or folder that exists beside a missing one and is named like it, or nothing.

    What comes after the last dot makes no name alike: `nope.jsonl` is not meant by `answers.jsonl`.
    """
    folder, name = os.path.split(value)
    try:
        entries = os.listdir(os.path.expanduser(folder) or ".")
    except (OSError, ValueError):
        return ""
    stems = {os.path.splitext(entry)[0]: entry for entry in sorted(entries)}
    alike = nearest(os.path.splitext(name)[0], stems)
    found = nearest(name, entries) if alike else ""
    return os.path.join(folder, found or stems[alike]) if alike else ""
