"""Two rules for word problems: the right number, and thoughts and answer in their tags."""

import re
from collections.abc import Sequence
from typing import Any

FORMAT = re.compile(r"\s*<think>.+?</think>\s*<answer>.+?</answer>\s*", re.DOTALL)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
ANSWER = re.compile(r"<answer>(.+?)</answer>", re.DOTALL)
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def exact(
    *, prompts: Sequence[str], responses: Sequence[str], answer: Sequence[str], **columns: Any
) -> list[float]:
    """1 for each response whose answer is the right number, else 0.

    Args:
        prompts: not used.
        responses: texts; the last number between the answer tags counts.
        answer: column of the rows; the number, or a solution whose last number it is.
        **columns: not used.
    """
    pairs = zip(responses, answer, strict=True)
    return [float(said(response) == last_number(right)) for response, right in pairs]


def formatted(*, prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """1 for each response that is thoughts and an answer in their tags and nothing else."""
    return [float(is_formatted(response)) for response in responses]


def is_formatted(response: str) -> bool:
    """Whether each tag stands once, in order, with text in both pairs."""
    once = all(response.count(tag) == 1 for tag in TAGS)
    return once and FORMAT.fullmatch(response) is not None


def said(response: str) -> float:
    """The number that a response gives as its answer; not a number where there is none."""
    answers = ANSWER.findall(response)
    return last_number(answers[-1]) if answers else float("nan")


def last_number(text: str) -> float:
    """The last number of a text, as 1234.5 for `1,234.50`; not a number where there is none."""
    numbers = NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else float("nan")
