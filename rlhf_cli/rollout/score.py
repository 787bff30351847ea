"""A user's own function that scores answers."""

from __future__ import annotations

import importlib.util
import math
import traceback
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from rlhf_cli.errors import ConfigError, RlhfError, first_line

Scorer = Callable[..., Any]


def load_scorer(key: str, place: str) -> Scorer:
    """The function that `FILE.py:FUNCTION` names; the file is run.

    Args:
        key: what the user set, for messages.
        place: what it was set to.

    Raises:
        ConfigError: the file cannot be run, or has no such function.
    """
    file, _, name = place.rpartition(":")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{key}: {file} is no Python file; need FILE.py:FUNCTION")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{key}: {file} cannot be run: {_told(error, file)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        names = [n for n, value in vars(module).items() if callable(value) and n[0] != "_"]
        raise ConfigError(f"{key}: {file} has no function {name}; it has {', '.join(names)}")
    found: Scorer = function
    return found


def score(
    scorer: Scorer, place: str, prompts: Sequence[Any], responses: Sequence[str]
) -> list[float]:
    """The score of each response.

    Args:
        scorer: called once, with `prompts` and `responses` by name.
        place: names it in messages.
        prompts: [n], text or lists of `{role, content}`.
        responses: [n], text without special tokens.

    Raises:
        RlhfError: it fails, or does not return a finite number for each response.
    """
    try:
        found = list(scorer(prompts=list(prompts), responses=list(responses)))
    except Exception as error:
        told = _told(error, place.rpartition(":")[0])
        raise RlhfError(f"{place} failed on {len(responses)} responses: {told}") from error
    if len(found) != len(responses):
        raise RlhfError(
            f"{place} returned {len(found)} scores for {len(responses)} responses; need one each"
        )
    for number, one in enumerate(found):
        if not isinstance(one, Real) or not math.isfinite(one):
            raise RlhfError(
                f"{place} returned {one!r} for response {number}; need a finite number each"
            )
    return [float(one) for one in found]


def _told(error: Exception, file: str) -> str:
    """The error in one line, with the last line of the user's file that it passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {first_line(error)}{where}"
