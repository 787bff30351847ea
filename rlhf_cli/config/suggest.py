"""What a user can have meant by a key that a command does not have.

A suggestion is printed only if the check accepts it.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rlhf_cli.config.foreign import FOREIGN, Foreign
from rlhf_cli.config.nearest import nearest
from rlhf_cli.config.renamed import renamed
from rlhf_cli.config.schema import Knob, Unfit, aliases, groups, knobs
from rlhf_cli.stages.registry import COMMANDS, Command

Judge = Callable[[str], Unfit | None]
"""What the check has against `key=value` as it is typed; nothing if it accepts it."""

_ALIKE = 0.75
"""Least likeness of a suggested key, by `SequenceMatcher`: `lrr` is like `lr` by 0.8."""


@dataclass(frozen=True)
class Unknown:
    """The line for an unknown key, and the keys that it stands for."""

    line: str
    meant: tuple[str, ...] = ()


def unknown_key(
    command: Command, key: str, text: str, given: Mapping[str, str], judge: Judge
) -> Unknown:
    """Explain a key that a command does not have.

    Args:
        command: That does not have it.
        key: As it was typed, by its full name.
        text: What it was set to; empty where that is nothing to repeat.
        given: All that was set, key -> text; a suggested value may depend on several.
        judge: The check of a suggestion.
    """
    old = renamed(key)
    if old:
        new, version = old
        if _has(command, new):
            line = f"{key}: renamed to {new} in {version}. Try {new}={text or 'VALUE'}"
            return Unknown(line, (new,))
        key = new
    short = aliases(command.config)
    if key in short:
        line = f"{key}: a short name of the command line; in a recipe write {short[key]}"
        return Unknown(line, (short[key],))
    entry = FOREIGN.get(key)
    if entry:
        return _foreign(command, key, entry, _settings(entry, text, given), judge)
    return _nearest(command, key, text, judge)


def _foreign(
    command: Command, key: str, entry: Foreign, settings: list[str], judge: Judge
) -> Unknown:
    """The line for a name that another trainer has for a key."""
    keys = [setting.partition("=")[0] for setting in settings]
    note = f" {entry.note}" if entry.note else ""
    if not keys:
        return Unknown(f"{_head(command, key)}.{note} {_help(command)}")
    having = [name for name, other in COMMANDS.items() if all(_has(other, key) for key in keys)]
    if command.name not in having:
        theirs = f"{keys[-1]}, a key of {', '.join(having)}"
        return Unknown(f"{_head(command, key)}; did you mean {theirs}?{note} {_help(command)}")
    advice, needs = _advice_of_all(command, settings, judge)
    meant = tuple(name for key in keys for name in _covered(command, key))
    return Unknown(f"{_head(command, key)}; did you mean {keys[-1]}{needs}?{note} {advice}", meant)


def _advice_of_all(command: Command, settings: list[str], judge: Judge) -> tuple[str, str]:
    """As `_advice`, of settings that stand together."""
    if any(name in setting for name in _PLACEHOLDERS for setting in settings):
        return _help(command), ""
    if len(settings) > 1 and any(map(judge, settings)):
        return _help(command), ""
    key, _, text = settings[-1].partition("=")
    advice, needs = _advice(command, key, text, judge)
    return (advice, needs) if len(settings) == 1 else (f"Try {' '.join(settings)}", "")


_PLACEHOLDERS = ("{}", "{list}", "{global}", "{steps}")


def _settings(entry: Foreign, text: str, given: Mapping[str, str]) -> list[str]:
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
    """A list as it is typed; a single word such as `all-linear` stays one."""
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


def _nearest(command: Command, key: str, text: str, judge: Judge) -> Unknown:
    meant = _meant(command, key)
    if not meant:
        return Unknown(f"{_head(command, key)}. {_help(command)}")
    advice, needs = _advice(command, meant, text, judge)
    known = any(key in _names(other) for other in COMMANDS.values())
    guess = "." if known and not needs else f"; did you mean {meant}{needs}?"
    return Unknown(f"{_head(command, key)}{guess} {advice}", (meant,))


def _advice(command: Command, meant: str, text: str, judge: Judge) -> tuple[str, str]:
    """What to type for a key with a value, and what the key needs where it is not that value."""
    refused = judge(f"{meant}={text}") if text else None
    if not refused:
        return f"Try {meant}={text or 'VALUE'}", ""
    needs = f", which {refused.need.replace('need ', 'needs ', 1)}"
    needs = needs if refused.need.startswith("need ") else ""
    return f"Try {meant}={refused.example}" if refused.example else _help(command), needs


def _head(command: Command, key: str) -> str:
    others = [name for name, other in COMMANDS.items() if key in _names(other)]
    if others:
        return f"{key}: a key of {', '.join(others)}, not of {command.name}"
    return f"{key}: no such key in {command.name}"


def _help(command: Command) -> str:
    return f"See rlhf {command.name} --help"


def _covered(command: Command, key: str) -> list[str]:
    """A key, or those that choosing a group by one word sets."""
    return [key, f"{key}.kind", f"{key}.path"] if key in groups(command.config) else [key]


def _names(command: Command) -> set[str]:
    return {*knobs(command.config), *groups(command.config)}


def _has(command: Command, key: str) -> bool:
    """Whether a key, or the mapping that it stands in, is one of the command's."""
    while key and key not in _names(command):
        key = key.rpartition(".")[0]
    return bool(key)


def _meant(command: Command, key: str) -> str:
    """The valid key that is most like a wrong one, by its full name or by its last part."""
    known = knobs(command.config)
    words = {**dict(zip(known, known, strict=True)), **aliases(command.config)}
    words |= {
        group: f"{group}.path" for group in groups(command.config) if f"{group}.path" in known
    }
    last = key.rpartition(".")[2]
    same = [knob.key for knob in known.values() if knob.name == last]
    if same:
        return same[0] if len(same) == 1 else nearest(key, same, _ALIKE)
    return _most_alike(key, last, words, known)


def _most_alike(key: str, last: str, words: dict[str, str], known: dict[str, Knob]) -> str:
    def likeness(word: str) -> float:
        whole = difflib.SequenceMatcher(None, key, word).ratio()
        return max(whole, difflib.SequenceMatcher(None, last, word.rpartition(".")[2]).ratio())

    best = max(words, key=likeness)
    return words[best] if likeness(best) >= _ALIKE and words[best] in known else ""
