"""Sampling keys that `/set` changes during a chat, by the check of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rlhf_cli.commands.chat.config import ChatConfig
from rlhf_cli.config.args import Override, parse
from rlhf_cli.config.check import check
from rlhf_cli.config.compose import override_values
from rlhf_cli.config.overrides import SeveralValues, refused_sweep, to_hydra
from rlhf_cli.config.schema import key_type, options
from rlhf_cli.config.values import format_value
from rlhf_cli.errors import ConfigError
from rlhf_cli.registry import COMMANDS

GROUP = "sampling"


def short_keys() -> dict[str, str]:
    """The keys that can be set during a chat: short name -> full name."""
    keys = (key for key in options(ChatConfig) if key.startswith(f"{GROUP}."))
    return {key.removeprefix(f"{GROUP}."): key for key in keys}


def with_settings(cfg: ChatConfig, words: Sequence[str]) -> ChatConfig:
    """Return the configuration with some sampling keys changed.

    Args:
        cfg: the present configuration.
        words: `key=value` each; keys of `sampling` may be given by their short names.

    Raises:
        ConfigError: a key is unknown or cannot be changed, or a value is refused.
    """
    command = COMMANDS["chat"]
    line = parse(command, [_full(word) for word in words])
    if line.problems:
        raise ConfigError("\n".join(line.problems))
    if not line.overrides or line.recipes or line.help:
        raise ConfigError(f"set: got {' '.join(words)}; need key=value. Try /set temperature=0.7")
    tree: dict[str, Any] = asdict(cfg)
    known = options(ChatConfig)
    for override in line.overrides:
        if override.key in known and not override.key.startswith(f"{GROUP}."):
            raise ConfigError(
                f"{override.key}: cannot change during a chat; need one of "
                f"{', '.join(short_keys())}. Start again with {override.key}={override.text}"
            )
        _put(tree, override.key, _value(override))
    checked = check(command, tree, {}, commands=COMMANDS)
    if checked.problems:
        raise ConfigError("\n".join(problem.text for problem in checked.problems))
    found: ChatConfig = checked.config
    return found


def _full(word: str) -> str:
    name, equals, value = word.partition("=")
    return f"{short_keys().get(name, name)}{equals}{value}"


def _value(override: Override) -> Any:
    kind = key_type(ChatConfig, override.key)
    if kind is None:
        return override.text  # the check names the nearest key
    try:
        return override_values([to_hydra(kind, override.key, override.text)])[override.key]
    except SeveralValues:
        raise ConfigError(refused_sweep(kind, override.key, override.text)) from None


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *groups, name = key.split(".")
    for group in groups:
        tree = tree.setdefault(group, {})
    tree[name] = value


def describe_settings(cfg: ChatConfig) -> str:
    """The sampling keys with their values, as `/set` takes them."""
    values = asdict(cfg.sampling)
    return " ".join(f"{name}={format_value(value)}" for name, value in values.items())
