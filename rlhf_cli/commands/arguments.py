"""Arguments of a tool that takes one run, keys with values and switches."""

from __future__ import annotations

import os.path
from collections.abc import Sequence
from dataclasses import dataclass, field

from rlhf_cli.config.suggest import nearest
from rlhf_cli.errors import ConfigError


@dataclass(frozen=True)
class ToolArguments:
    """Parsed arguments.

    Attributes:
        run: the run, model folder or hub id.
        values: value of each key that was given.
        switches: switches that were given, as `--dry-run`.
    """

    run: str
    values: dict[str, str] = field(default_factory=dict)
    switches: frozenset[str] = frozenset()


def parse_arguments(
    tool: str,
    words: Sequence[str],
    keys: dict[str, tuple[str, ...]],
    switches: tuple[str, ...] = (),
) -> ToolArguments:
    """Parse what follows the name of a tool.

    Args:
        tool: its name.
        words: the arguments.
        keys: key -> its choices; no choices for any text.
        switches: words that start with a dash.

    Raises:
        ConfigError: a word is not known, a value is no choice, or there is not exactly one run.
    """
    values: dict[str, str] = {}
    given: list[str] = []
    runs: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if word in switches:
            given.append(word)
        elif equals and key in keys:
            _require_choice(key, value, keys[key])
            values[key] = value
        elif word.startswith("-") or (equals and not os.path.exists(word)):
            raise ConfigError(_unknown(tool, word, [*keys, *switches]))
        else:
            runs.append(word)
    if len(runs) != 1:
        got = " ".join(runs) or "nothing"
        raise ConfigError(f"{tool}: got {got}; need one run or model. Try rlhf {tool} runs/sft")
    return ToolArguments(runs[0], values, frozenset(given))


def _require_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if choices and value not in choices:
        close = nearest(value, choices) or choices[0]
        raise ConfigError(
            f"{key}: got {value}; need one of {', '.join(choices)}. Try {key}={close}"
        )
    if not value:
        raise ConfigError(f"{key}: got no value. Try {key}=VALUE")


def _unknown(tool: str, word: str, known: list[str]) -> str:
    key = word.partition("=")[0]
    close = nearest(key, known)
    advice = f". Try {close}" if close else ""
    return f"{key}: unknown argument of {tool}; need one of {', '.join(known)}{advice}"
