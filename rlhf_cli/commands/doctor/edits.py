"""Copies of responses that a reward model should score lower, or the same."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

MIN_WORDS = 4
"""Shorter responses are not shuffled or cut: too little would change."""

_SENTENCE_SPACE = re.compile(r"(?<=[.!?]) (?=\S)")


def shuffle_words(text: str, rng: random.Random) -> str:
    """The same words in another order."""
    words = text.split()
    if len(words) < MIN_WORDS:
        return text
    rng.shuffle(words)
    return " ".join(words)


def repeat_text(text: str, rng: random.Random) -> str:
    """The text twice."""
    return f"{text} {text}" if text.strip() else text


def cut_in_half(text: str, rng: random.Random) -> str:
    """The first half of the words."""
    words = text.split()
    return " ".join(words[: len(words) // 2]) if len(words) >= MIN_WORDS else text


CORRUPTIONS: dict[str, Callable[[str, random.Random], str]] = {
    "words shuffled": shuffle_words,
    "text repeated": repeat_text,
    "cut in half": cut_in_half,
    "empty": lambda text, rng: "",
}
"""Name -> makes a worse copy of a response; the copy equals it where nothing can be changed."""

OTHER_ANSWER = "another prompt's answer"


def corrupt(texts: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Worse copies of responses to different prompts.

    Args:
        texts: one response to each prompt.
        seed: seed of the order of words.

    Returns:
        Kind of corruption -> a copy of each text, equal to it where nothing can be changed.
    """
    rng = random.Random(seed)
    copies = {name: [change(text, rng) for text in texts] for name, change in CORRUPTIONS.items()}
    if len(texts) > 1:
        copies[OTHER_ANSWER] = [*texts[1:], texts[0]]
    return copies


HARMLESS: dict[str, Callable[[str], str]] = {
    "space at the end": lambda text: f"{text} ",
    "line break at the end": lambda text: f"{text}\n",
    "space at the start": lambda text: f" {text}",
    "two spaces between sentences": lambda text: _SENTENCE_SPACE.sub("  ", text),
}
"""Name -> a change that leaves the meaning; sampling makes such changes too."""
