"""What all sources of scores have in common, and the check of what they give."""

from __future__ import annotations

import math
import reprlib
from typing import Any, Protocol

from rlhf_cli.errors import DataError
from rlhf_cli.rewards.samples import Samples


class Scorer(Protocol):
    """Gives each response a score.

    Attributes:
        described: where the scores come from, in words.
        nbytes: memory that it takes, where it is a model.
    """

    described: str
    nbytes: int

    def __call__(self, samples: Samples) -> Any:
        """A number for each sample: a list, array or tensor of as many.

        Raises:
            DataError: it cannot score them; the message has the key that named it.
        """


def numbers(given: Any, samples: Samples, who: str, first: int = 0) -> list[float]:
    """What a scorer gave, as one finite number for each sample.

    Args:
        given: whatever came back.
        samples: that were scored.
        who: gave it: the key and its value.
        first: index of the first of these samples, for messages.

    Raises:
        DataError: it is anything else.
    """
    values = given.tolist() if hasattr(given, "tolist") else given
    need = "need a list of finite numbers, one for each response"
    if not isinstance(values, list | tuple):
        raise DataError(f"{who} gave {_shown(values)}; {need}")
    if len(values) != len(samples):
        raise DataError(f"{who} gave {len(values)} scores for {len(samples)} responses; {need}")
    found = [_number(value) for value in values]
    for index, number in enumerate(found):
        if number is None:
            where = samples.describe(index, first)
            raise DataError(f"{who} gave {_shown(values[index])} for {where}; {need}")
    return [number for number in found if number is not None]


def _number(value: Any) -> float | None:
    plain = value.item() if getattr(value, "ndim", None) == 0 else value
    if not isinstance(plain, int | float):
        return None
    try:
        number = float(plain)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _shown(value: Any) -> str:
    """A value as Python writes it, short and on one line; its type where that is not plain."""
    text = " ".join(reprlib.repr(value).split())
    plain = isinstance(value, int | float | str | list | dict | tuple | type(None))
    return text if plain else f"a {type(value).__name__} ({text})"
