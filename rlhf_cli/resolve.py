"""From the words of the command line to a checked configuration."""

import sys
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rlhf_cli.config import paths, recipe
from rlhf_cli.config.args import CommandLine, Override
from rlhf_cli.config.check import ConfigProblem, check, check_override, origin
from rlhf_cli.config.command import Command
from rlhf_cli.config.compose import Layer, compose_tree
from rlhf_cli.config.overrides import SeveralValues, refused_sweep, to_hydra
from rlhf_cli.config.provenance import COMMAND_LINE
from rlhf_cli.config.recipe import Recipe
from rlhf_cli.config.references import find_references, literal_secrets, with_references
from rlhf_cli.config.schema import aliases, field_types, flatten, groups, key_type, options
from rlhf_cli.config.suggest import nearest, unknown_key
from rlhf_cli.config.values import format_value
from rlhf_cli.errors import ConfigError, DataError, RlhfError
from rlhf_cli.registry import COMMANDS
from rlhf_cli.resources import presets, recipes
from rlhf_cli.runs import secrets


@dataclass(frozen=True)
class Resolved:
    """A configuration that can be run."""

    config: Any
    """An instance of the command's config class."""

    tree: dict[str, Any]
    """The same as plain values."""

    layers: list[Layer]
    """What it was composed of: the recipes and the choices of the command line, in order."""

    overrides: list[str]
    """What the command line sets, which wins over all of them."""

    references: dict[str, str] = field(default_factory=dict)
    """Header or address -> the text with `${oc.env:NAME}` that its value came from."""

    @property
    def public_tree(self) -> dict[str, Any]:
        """The plain values without secrets that came from the environment; what is written down."""
        public: dict[str, Any] = with_references(self.tree, self.references)
        return public


def resolve(command: Command, line: CommandLine) -> Resolved:
    """Compose and check.

    Raises:
        ConfigError: Something is wrong; the message has a line for every problem.
        DataError: The same, and all that is wrong are paths of data.
    """
    sources = _Sources(command)
    sources.problems += [ConfigProblem("", text) for text in line.problems]
    for name in line.recipes:
        sources.add_recipe(name)
    sources.add_overrides(line.overrides)
    for note in [*line.notes, *sources.notes]:
        print(f"note: {note}", file=sys.stderr)
    try:
        composed = compose_tree(command, sources.layers, sources.overrides)
    except ConfigError as error:
        raise _refusal([*sources.problems, ConfigProblem("", str(error))]) from None
    references = find_references(composed.raw, composed.tree)
    secrets.begin(references)
    for key, text in literal_secrets(composed.raw):
        sources.problem(key, text, origin(key, sources.origins) or COMMAND_LINE)
    checked = check(
        command,
        composed.tree,
        sources.origins,
        commands=COMMANDS,
        whole=sources.whole,
        meant=sources.meant,
    )
    problems = [*sources.problems, *checked.problems]
    if problems:
        raise _refusal(problems)
    layers, overrides = sources.layers, sources.overrides
    return Resolved(checked.config, checked.tree, layers, overrides, references)


def _refusal(problems: list[ConfigProblem]) -> RlhfError:
    kind = DataError if all(problem.about_data for problem in problems) else ConfigError
    return kind("\n".join(dict.fromkeys(problem.text for problem in problems)))


class _Sources:
    """What recipes and the command line set, in the form that Hydra takes."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.groups = groups(command.config)
        self.knobs = options(command.config)
        self.layers: list[Layer] = []
        self.overrides: list[str] = []
        self.given: dict[str, str] = {}
        self.origins: dict[str, str] = {}
        self.problems: list[ConfigProblem] = []
        self.notes: list[str] = []
        self.whole = True
        self.typed: dict[str, str] = {}
        """All that is set, known or not, as it is typed."""

        self.meant: set[str] = set()
        """Keys that unknown ones stand for."""

    def problem(self, key: str, text: str, origin: str = COMMAND_LINE) -> None:
        self.problems.append(ConfigProblem(key, f"{text}  ({origin})"))

    def add_recipe(self, name: str) -> None:
        try:
            shown = f"{name}.yaml" if name in recipes() else name
            read = recipe.read(recipe.find(name), shown, self.groups, aliases(self.command.config))
        except ConfigError as error:
            self.problems.append(ConfigProblem("", str(error)))
            self.whole = False
            return
        self.problems += [ConfigProblem("", text) for text in read.problems]
        self.notes += read.notes
        self.typed |= {key: format_value(value) for key, value in flatten(read.values).items()}
        if read.stage not in ("", self.command.name):
            self.problem("stage", self._other_stage(name, read.stage), read.origin("stage"))
        layer = Layer(values=read.values, origins={key: read.origin(key) for key in read.lines})
        for group, word in read.choices.items():
            self._choose_in(read, layer, group, word)
        self._anchor(read)
        self.origins |= layer.origins
        self.layers.append(layer)

    def _other_stage(self, name: str, stage: str) -> str:
        if stage in COMMANDS:
            advice = f"Try rlhf {stage} config={name}"
            return f"stage: {name} is for {stage}, not for {self.command.name}. {advice}"
        return f"stage: got {stage}; need one of {', '.join(COMMANDS)}, or leave it out"

    def _choose_in(self, read: Recipe, layer: Layer, group: str, word: str) -> None:
        if word in presets(group):
            layer.choices[group] = word
        elif "path" in field_types(self.groups[group]):
            values = layer.values.setdefault(group, {})
            if "path" in values:
                text = f"{group}.path: given beside {group}: {word}; need one of the two"
                self.problem(f"{group}.path", text, read.origin(group))
            values["path"] = word
            layer.origins[f"{group}.path"] = read.origin(group)
        else:
            self._no_option(group, word, read.origin(group))

    def _no_option(self, group: str, word: str, origin: str) -> None:
        names = presets(group)
        needed = f"one of {', '.join(names)}, or keys" if names else "keys"
        key = next(iter(field_types(self.groups[group])))
        best = nearest(word, names)
        advice = f"Try {group}={best}" if best else f"Try {group}.{key}=VALUE"
        self.problem(group, f"{group}: got {word}; need {needed} below it. {advice}", origin)

    def _anchor(self, read: Recipe) -> None:
        """Make the recipe's relative paths absolute, where they mean the recipe's folder."""
        for option in self.knobs.values():
            parent: Any = read.values
            for part in option.key.split(".")[:-1]:
                parent = parent.get(part) if isinstance(parent, dict) else None
            if isinstance(parent, dict) and option.name in parent:
                parent[option.name] = paths.anchor_all(
                    option.type, parent[option.name], read.folder
                )

    def add_overrides(self, overrides: list[Override]) -> None:
        layer = Layer()
        self.typed |= {override.key: override.text for override in overrides}
        for override in overrides:
            if override.key in self.groups and not override.text.startswith("{"):
                self._choose(layer, override)
            else:
                self._set(override.key, override.text)
        self.layers.append(layer)

    def _choose(self, layer: Layer, override: Override) -> None:
        if override.text in presets(override.key):
            layer.choices[override.key] = override.text
            self.origins[override.key] = layer.origins[override.key] = COMMAND_LINE
        elif "path" in field_types(self.groups[override.key]):
            self._set(f"{override.key}.path", override.text)
        else:
            self._no_option(override.key, override.text, COMMAND_LINE)

    def _set(self, key: str, text: str) -> None:
        kind = key_type(self.command.config, key)
        if kind is None:
            accepts = partial(check_override, self.command)
            found = unknown_key(self.command, key, text, self.typed, accepts, COMMANDS)
            self.problem(key, found.line)
            self.meant.update(found.meant)
            return
        before = self.given.setdefault(key, text)  # `model=a model.path=b` says it by two names
        if before != text:
            self.problem(key, f"{key}: given twice, as {before} and as {text}; need it once")
            return
        self.origins[key] = COMMAND_LINE
        try:
            self.overrides.append(to_hydra(kind, key, text))
        except SeveralValues:
            self.problem(key, refused_sweep(kind, key, text))
