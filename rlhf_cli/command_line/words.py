"""The words after `rlhf <command>`: recipes, settings and switches, not yet judged."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from rlhf_cli.config.schema import aliases
from rlhf_cli.stages.registry import Command

_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


@dataclass(frozen=True)
class Setting:
    """`key=text` from the command line, the key by its full name."""

    key: str
    text: str


@dataclass
class CommandLine:
    """What the user typed, sorted."""

    recipes: list[str] = field(default_factory=list)
    settings: list[Setting] = field(default_factory=list)
    help: bool = False
    show_config: bool = False
    show_origins: bool = False
    """With `show_config`: as a table that says where each value comes from."""

    problems: list[str] = field(default_factory=list)

    def sets(self, *keys: str) -> bool:
        """Whether any of the keys is set by the words themselves."""
        return any(setting.key in keys for setting in self.settings)


def parse(command: Command, words: list[str]) -> CommandLine:
    """Sort the words of a command; `--beta 0.1` and `--beta=0.1` are `beta=0.1`."""
    line = CommandLine()
    short = aliases(command.config)
    positional = command.positional
    rest = iter(words)
    for word in rest:
        if word in ("--help", "-h"):
            line.help = True
        elif word == "--cfg":
            line.show_config = True
        elif word == "--provenance":
            line.show_config = line.show_origins = True
        elif word in ("-m", "--multirun"):
            line.problems.append(f"{word}: sweeps are not available yet; run each value by itself")
        elif word.startswith("--"):
            _add(line, short, _undash(line, word, rest))
        elif positional and _is_bare(word):
            _add(line, short, f"{positional}={word}")
            positional = ""
        else:
            _add(line, short, word)
    return line


def _is_bare(word: str) -> bool:
    """Whether a word is no `key=value` but a name or a path, as `runs/sft` or `runs/lr=1e-4`."""
    key, equals, _ = word.partition("=")
    path = "/" in key
    return path or (bool(key) and not equals and key[0] not in "~-")


def _undash(line: CommandLine, word: str, rest: Iterator[str]) -> str:
    key, equals, text = word[2:].partition("=")
    key = key.replace("-", "_")
    if not equals:
        following = next(rest, None)
        if following is None or following.startswith("--"):
            line.problems.append(f"{word}: got no value. Try {key}=VALUE")
            return following or ""
        text = following
    return f"{key}={text}"


def _add(line: CommandLine, short: dict[str, str], word: str) -> None:
    if not _is_text(word):
        line.problems.append(f"{word!a}: not UTF-8; set the terminal's encoding to UTF-8")
        return
    key, equals, text = word.partition("=")
    if not word:
        return
    if word.startswith("~"):
        key = key[1:]
        line.problems.append(f"{word}: a key cannot be taken away; set it. Try {key}=VALUE")
    elif not equals:
        line.problems.append(f"{word}: need key=value. Try config={word} if it is a recipe")
    elif key == "config":
        line.recipes.append(text)
    elif not _KEY.fullmatch(key.lstrip("+")):
        line.problems.append(f"{word}: got no key before `=`; need key=value, as in seed=1")
    else:
        key = key.lstrip("+")
        line.settings.append(Setting(short.get(key, key), text))


def _is_text(word: str) -> bool:
    """False for bytes that the terminal's encoding could not decode."""
    return not any("\ud800" <= letter <= "\udfff" for letter in word)
