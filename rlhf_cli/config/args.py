"""Parser of the arguments of `rlhf <command>`: recipes, overrides and switches, not yet checked."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from rlhf_cli.config.command import Command
from rlhf_cli.config.deprecations import rename_text
from rlhf_cli.config.schema import aliases, groups, options

_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
_HYDRA = re.compile(r"[+~]*hydra[./][\w./@]+=.*", re.DOTALL)


@dataclass(frozen=True)
class Override:
    """`key=text` from the command line, the key by its full name."""

    key: str
    text: str


@dataclass
class CommandLine:
    """The parsed command line."""

    recipes: list[str] = field(default_factory=list)
    overrides: list[Override] = field(default_factory=list)
    help: bool = False
    show_config: bool = False
    show_origins: bool = False
    """With `show_config`: as a table that says where each value comes from."""

    dry_run: bool = False
    """Print what a run would do, and run nothing."""

    quiet: bool = False
    """Print nothing on stderr but errors."""

    json: bool = False
    """Print the result on stdout as one JSON object."""

    multirun: bool = False
    for_hydra: list[str] = field(default_factory=list)
    """Arguments of a sweep that are passed to Hydra unchanged, as `hydra/launcher=joblib`."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """A line for each key or value that was given by an older name."""

    def sets(self, *keys: str) -> bool:
        """Whether any of the keys is set on the command line itself."""
        return any(override.key in keys for override in self.overrides)


_SWITCHES = {
    "--help": "help",
    "-h": "help",
    "help": "help",
    "--cfg": "show_config",
    "--provenance": "show_origins",
    "--dry-run": "dry_run",
    "--quiet": "quiet",
    "-q": "quiet",
    "--json": "json",
    "-m": "multirun",
    "--multirun": "multirun",
}
_KNOWN_SWITCHES = "-m, --cfg, --provenance, --dry-run, --quiet, --json, --help"


def parse(command: Command, words: list[str]) -> CommandLine:
    """Parse the arguments of a command; `--beta 0.1` and `--beta=0.1` are `beta=0.1`."""
    line = CommandLine(multirun=bool({"-m", "--multirun"} & set(words)))
    parser = _ArgParser(command, line)
    rest = iter(words)
    for word in rest:
        parser.add(word, rest)
    parser.finish()
    line.show_config |= line.show_origins
    line.problems += _switch_problems(line)
    return line


def _switch_problems(line: CommandLine) -> list[str]:
    """Switches that do not go together, one line each."""
    found = []
    if line.dry_run and line.show_config:
        other = "--provenance" if line.show_origins else "--cfg"
        found.append(f"--dry-run: given beside {other}; need one of the two")
    return found


class _ArgParser:
    """Takes one argument after the other."""

    def __init__(self, command: Command, line: CommandLine) -> None:
        self.line = line
        self.positional = command.positional
        """The key that the first positional argument sets; empty once it is set."""

        self.more = command.more
        self.others: list[str] = []
        """Positional arguments after the first, for a command that has a list for them."""

        self.short = aliases(command.config)
        self.known = {*options(command.config), *groups(command.config), *self.short}
        self.first: dict[str, tuple[str, str]] = {}
        """Key -> its first value, and the argument that set it."""

    def problem(self, word: str, text: str) -> None:
        self.line.problems.append(f"{word}: {text}")

    def add(self, word: str, rest: Iterator[str]) -> None:
        """Take an argument, and the following ones that belong to it."""
        if word in _SWITCHES:
            setattr(self.line, _SWITCHES[word], True)
        elif word.startswith("--") and "=" not in word:
            self._dashed(word, rest)
        elif self.positional and _is_bare(word):
            self._set(word, self.positional, word)
            self.positional = ""
        elif self.more and _is_bare(word):
            self.others.append(word)
        elif word:
            self._add(word.removeprefix("--"), dashed=word.startswith("--"))

    def finish(self) -> None:
        """Set the list of the further positional arguments."""
        if self.others:
            quoted = ("'" + word.replace("'", "\\'") + "'" for word in self.others)
            self._set(" ".join(self.others), self.more, f"[{','.join(quoted)}]")

    def _dashed(self, word: str, rest: Iterator[str]) -> None:
        """Take `--beta 0.1`, or refuse an unknown switch."""
        key = word[2:].replace("-", "_")
        following = next(rest, "")
        if following and not self._is_own(following):
            self._add(f"{key}={following}", dashed=False)
            return
        if key in self.known:
            self.problem(word, f"got no value. Try {key}=VALUE")
        else:
            self.problem(word, f"no such switch; need key=value, or one of {_KNOWN_SWITCHES}")
        if following:
            self.add(following, rest)

    def _is_own(self, word: str) -> bool:
        """Whether an argument is a switch or override, so not the value of the one before."""
        key, equals, _ = word.partition("=")
        return word.startswith("--") or word in _SWITCHES or bool(equals and key in self.known)

    def _add(self, word: str, *, dashed: bool) -> None:
        key, equals, text = word.partition("=")
        if dashed:
            key = key.replace("-", "_")
        if not _is_text(word):
            self.problem(f"{word!a}", "not UTF-8; set the terminal's encoding to UTF-8")
        elif _HYDRA.fullmatch(word):
            self.line.for_hydra.append(word)
            if not self.line.multirun:
                self.problem(word, "Hydra's own settings are for sweeps; add -m")
        elif equals and key == "config":
            self.line.recipes.append(text)
        elif equals and _KEY.fullmatch(key.lstrip("+")):
            self._set(word, key.lstrip("+"), text)
        else:
            self.problem(word, self._advice(word, key, equals))

    def _set(self, word: str, key: str, text: str) -> None:
        found = rename_text(self.short.get(key, key), text)
        key, text = found.key, found.value
        self.line.notes += [f"{found.note}  (command line)"] if found.note else []
        before, first = self.first.get(key, (text, ""))
        if not first:
            self.first[key] = text, word
            self.line.overrides.append(Override(key, text))
        elif not _same(before, text):
            self.problem(word, f"{key} is set already by {first}; need it once")

    def _advice(self, word: str, key: str, equals: str) -> str:
        name, _, value = word.lstrip("-").partition("=" if equals else ":")
        if word.startswith("~"):
            return f"a key cannot be taken away; set it. Try {key[1:]}=VALUE"
        if name in self.known:
            return f"need key=value, without spaces. Try {name}={value or 'VALUE'}"
        if word.startswith("-"):
            return f"no such switch; need key=value, or one of {_KNOWN_SWITCHES}"
        if equals:
            return "got no key before `=`; need key=value, without spaces, as in seed=1"
        return f"need key=value. Try config={word} if it is a recipe"


def _same(one: str, other: str) -> bool:
    try:
        return one == other or float(one) == float(other)
    except ValueError:
        return False


def _is_bare(word: str) -> bool:
    """Whether an argument is positional: a name or a path, as `runs/sft` or `runs/lr=1e-4`."""
    key, equals, _ = word.partition("=")
    path = "/" in key
    return path or (bool(key) and not equals and key[0] not in "~-")


def _is_text(word: str) -> bool:
    """False for bytes that the terminal's encoding could not decode."""
    return not any("\ud800" <= letter <= "\udfff" for letter in word)
