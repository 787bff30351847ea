"""The nearest of what there is to what was typed."""

import difflib
import os
from collections.abc import Iterable


def nearest(word: str, choices: Iterable[str], cutoff: float = 0.6) -> str:
    """The choice most like a word, or nothing if none is."""
    return next(iter(difflib.get_close_matches(word, list(choices), n=1, cutoff=cutoff)), "")


def nearest_path(value: str) -> str:
    """A file or folder that exists beside a missing one and is named like it, or nothing."""
    folder, name = os.path.split(value)
    try:
        found = nearest(name, os.listdir(os.path.expanduser(folder) or "."))
    except (OSError, ValueError):
        return ""
    return os.path.join(folder, found) if found else ""
