"""The judge of sums: 1 where the response is the sum and nothing else, otherwise 0."""

import re
from collections.abc import Sequence
from typing import Any


def score(*, prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """Score responses.

    Args:
        prompts: as `3+4=`.
        responses: texts without special tokens, one for each prompt.
        **columns: not used; the prompt says everything.

    Returns:
        One number for each response.
    """
    pairs = zip(prompts, responses, strict=True)
    return [float(response == right(prompt)) for prompt, response in pairs]


def right(prompt: str) -> str:
    """The answer to a prompt, which holds two numbers."""
    first, second = re.findall(r"\d+", prompt)
    return str(int(first) + int(second))
