"""Suggestions: the nearest of known names, and what a user can have meant by an unknown key.

A suggestion is printed only if the check accepts it.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from rlhf_cli.config.command import Command
from rlhf_cli.config.other_trainers import OTHER_NAMES, OtherName
from rlhf_cli.config.schema import InvalidValue, Option, aliases, groups, options

CheckOverride = Callable[[str], InvalidValue | None]
"""What is wrong with `key=value` as it is typed; None if it is accepted."""

Commands = Mapping[str, Command]
"""All commands by name, to say which of them has a key."""

_ALIKE = 0.75
"""Least likeness of a suggested key, by `SequenceMatcher`: `lrr` is like `lr` by 0.8."""


def nearest(word: str, choices: Iterable[str], cutoff: float = 0.6) -> str:
    """The choice most like a text, or nothing if none is."""
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


@dataclass(frozen=True)
class Unknown:
    """The line for an unknown key, and the keys that it stands for."""

    line: str
    meant: tuple[str, ...] = ()


def unknown_key(
    command: Command,
    key: str,
    text: str,
    given: Mapping[str, str],
    check: CheckOverride,
    commands: Commands,
) -> Unknown:
    """Explain a key that a command does not have.

    Args:
        command: that does not have it.
        key: as it was typed, by its full name.
        text: what it was set to; empty where that is nothing to repeat.
        given: all that was set, key -> text; a suggested value may depend on several.
        check: of a suggestion.
        commands: all commands, which may have the key.
    """
    query = _Query(command, key, text, check, commands)
    entry = OTHER_NAMES.get(key)
    if entry:
        return query.other_name(entry, _settings(entry, text, given))
    return query.nearest_key()


@dataclass(frozen=True)
class _Query:
    """An unknown key with its value, and what an explanation of it needs."""

    command: Command
    key: str
    text: str
    check: CheckOverride
    commands: Commands

    def other_name(self, entry: OtherName, settings: list[str]) -> Unknown:
        """Explain a name that another trainer has for a key."""
        keys = [setting.partition("=")[0] for setting in settings]
        note = f" {entry.note}" if entry.note else ""
        if not keys:
            return Unknown(f"{self._head()}.{note} {self._help()}")
        having = [n for n, other in self.commands.items() if all(_has(other, key) for key in keys)]
        if not all(_has(self.command, key) for key in keys):
            theirs = f"{keys[-1]}, a key of {', '.join(having)}"
            return Unknown(f"{self._head()}; did you mean {theirs}?{note} {self._help()}")
        advice, needs = self._advice_of_all(settings)
        meant = tuple(name for key in keys for name in _covered(self.command, key))
        return Unknown(f"{self._head()}; did you mean {keys[-1]}{needs}?{note} {advice}", meant)

    def nearest_key(self) -> Unknown:
        """Explain a key by the one of the command that is most like it."""
        meant = _most_similar_key(self.command, self.key)
        if not meant:
            return Unknown(f"{self._head()}. {self._help()}")
        advice, needs = self._advice(meant, self.text)
        known = any(self.key in _names(other) for other in self.commands.values())
        guess = "." if known and not needs else f"; did you mean {meant}{needs}?"
        return Unknown(f"{self._head()}{guess} {advice}", (meant,))

    def _head(self) -> str:
        others = [name for name, other in self.commands.items() if self.key in _names(other)]
        if others:
            return f"{self.key}: a key of {', '.join(others)}, not of {self.command.name}"
        return f"{self.key}: no such key in {self.command.name}"

    def _help(self) -> str:
        return f"See rlhf {self.command.name} --help"

    def _advice_of_all(self, settings: list[str]) -> tuple[str, str]:
        """`_advice` for several settings that are set together."""
        if any(name in setting for name in _PLACEHOLDERS for setting in settings):
            return self._help(), ""
        if len(settings) > 1 and any(map(self.check, settings)):
            return self._help(), ""
        key, _, text = settings[-1].partition("=")
        advice, needs = self._advice(key, text)
        return (advice, needs) if len(settings) == 1 else (f"Try {' '.join(settings)}", "")

    def _advice(self, meant: str, text: str) -> tuple[str, str]:
        """What to type for a key with a value, and what the key needs where the value is wrong."""
        refused = self.check(f"{meant}={text}") if text else None
        if not refused:
            return f"Try {meant}={text or 'VALUE'}", ""
        needs = f", which {refused.need.replace('need ', 'needs ', 1)}"
        needs = needs if refused.need.startswith("need ") else ""
        return f"Try {meant}={refused.example}" if refused.example else self._help(), needs


_PLACEHOLDERS = ("{}", "{list}", "{global}", "{steps}")


def _settings(entry: OtherName, text: str, given: Mapping[str, str]) -> list[str]:
    """What to type here, `key=value` each; a placeholder stays where there is no value for it."""
    found = entry.settings
    if isinstance(found, dict):
        by_value = found.get(text.lower())
        return by_value.split() if by_value else [f"{entry.keys[-1]}={text}"]
    values = (text, _as_list(text), _product(given), _share(text, given))
    for name, value in zip(_PLACEHOLDERS, values, strict=True):
        found = found.replace(name, value or name)
    return re.split(r" (?=[\w.]+=)", found) if found else []


def _as_list(text: str) -> str:
    """A list as it is typed; a single name such as `all-linear` stays one."""
    names = text.strip("[]").replace(",", " ").split()
    if names in (["all"], ["all-linear"]):
        return "all-linear"
    return f"[{','.join(names)}]" if names else ""


_FACTORS = (
    ("per_device_train_batch_size", "per_gpu_train_batch_size", "micro_batch_size"),
    ("gradient_accumulation_steps",),
)
"""Names of the examples that one device holds, and of how often it does so for a step."""


def _product(given: Mapping[str, str]) -> str:
    """Examples of an optimizer step on one device, where both factors are whole numbers."""
    found = [next((given[name] for name in names if name in given), "") for names in _FACTORS]
    if not found[0] or not all(text.isdecimal() for text in found if text):
        return ""
    return str(int(found[0]) * int(found[1] or 1))


def _share(text: str, given: Mapping[str, str]) -> str:
    """A share of the run's steps, where their number is known."""
    steps = given.get("train.max_steps", given.get("max_steps", ""))
    try:
        return str(round(float(text) * int(steps))) if int(steps) else ""
    except (ValueError, OverflowError):
        return ""


def _covered(command: Command, key: str) -> list[str]:
    """A key, or those that a preset of a group sets."""
    return [key, f"{key}.kind", f"{key}.path"] if key in groups(command.config) else [key]


def _names(command: Command) -> set[str]:
    return {*options(command.config), *groups(command.config)}


def _has(command: Command, key: str) -> bool:
    """Whether a key, or the mapping that it stands in, is one of the command's."""
    while key and key not in _names(command):
        key = key.rpartition(".")[0]
    return bool(key)


def _most_similar_key(command: Command, key: str) -> str:
    """The valid key that is most like a wrong one, by its full name or by its last part."""
    known = options(command.config)
    words = {**dict(zip(known, known, strict=True)), **aliases(command.config)}
    words |= {
        group: f"{group}.path" for group in groups(command.config) if f"{group}.path" in known
    }
    last = key.rpartition(".")[2]
    same = [option.key for option in known.values() if option.name == last]
    if same:
        return same[0] if len(same) == 1 else nearest(key, same, _ALIKE)
    return _most_similar(key, last, words, known)


def _most_similar(key: str, last: str, words: dict[str, str], known: dict[str, Option]) -> str:
    def likeness(word: str) -> float:
        whole = difflib.SequenceMatcher(None, key, word).ratio()
        return max(whole, difflib.SequenceMatcher(None, last, word.rpartition(".")[2]).ratio())

    best = max(words, key=likeness)
    return words[best] if likeness(best) >= _ALIKE and words[best] in known else ""
