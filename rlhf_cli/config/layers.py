"""Layers of a configuration: what each recipe and the command line set, in the form Hydra takes."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_cli.config import paths, presets, recipe
from rlhf_cli.config.args import CommandLine, Override
from rlhf_cli.config.check import ConfigProblem, check_override, origin
from rlhf_cli.config.command import Command
from rlhf_cli.config.compose import VARIABLES, Layer
from rlhf_cli.config.overrides import (
    SeveralValues,
    in_grammar,
    parse_override,
    refused_sweep,
    to_hydra,
    to_text,
)
from rlhf_cli.config.provenance import COMMAND_LINE
from rlhf_cli.config.recipe import Recipe
from rlhf_cli.config.references import iterate_texts
from rlhf_cli.config.schema import (
    InvalidValue,
    aliases,
    field_types,
    flatten,
    groups,
    key_type,
    options,
)
from rlhf_cli.config.suggest import Commands, nearest, unknown_key
from rlhf_cli.config.values import format_value
from rlhf_cli.errors import ConfigError


class LayerBuilder:
    """Makes layers of recipes and the command line, and collects what is wrong with them.

    Attributes:
        layers: the recipes and the choices of the command line, in order.
        overrides: what the command line sets, in Hydra's grammar.
        variable_overrides: the variables that the command line sets, in the same.
        variables: name of each variable of a recipe -> where it stands.
        sweep: swept key of a recipe -> its values, and where they stand.
        origins: key -> where it was last set.
        whole: all recipes and presets could be read.
        meant: keys that unknown ones stand for.
        notes: lines for the user about what is accepted.
    """

    def __init__(self, command: Command, commands: Commands) -> None:
        self.command, self.commands = command, commands
        self.groups = groups(command.config)
        self.options = options(command.config)
        self.layers: list[Layer] = []
        self.overrides: list[str] = []
        self.variable_overrides: list[str] = []
        self.variables: dict[str, str] = {}
        self.sweep: dict[str, tuple[Override, str]] = {}
        self.origins: dict[str, str] = {}
        self.whole = True
        self.meant: set[str] = set()
        self.notes: list[str] = []
        self.problems: list[ConfigProblem] = []
        self._preset_folders: list[Path] = []
        self._command_line: list[Override] = []
        self._given: dict[str, str] = {}
        self._typed: dict[str, str] = {}  # all that is set, known or not, as it is typed

    def problem(self, key: str, text: str, origin: str = COMMAND_LINE) -> None:
        """Add a problem with a key, and where the key was set."""
        self.problems.append(ConfigProblem(key, f"{text}  ({origin})"))

    def add_recipe(self, name: str) -> None:
        """Add a layer for each recipe that `config=NAME` stands for, bases first."""
        try:
            chain = recipe.read_chain(name, self.groups, aliases(self.command.config))
        except ConfigError as error:
            self.problems.append(ConfigProblem("", str(error)))
            self.whole = False
            return
        for read in chain:
            self._add_layer(read, name if read is chain[-1] else read.name)

    def _add_layer(self, read: Recipe, name: str) -> None:
        self._preset_folders.insert(0, read.folder / presets.BESIDE)
        self.problems += [ConfigProblem("", text) for text in read.problems]
        self.notes += read.notes
        self._typed |= {key: format_value(value) for key, value in flatten(read.values).items()}
        if read.stage not in ("", self.command.name):
            self.problem("stage", self._other_stage(name, read.stage), read.origin("stage"))
        layer = Layer(values=read.values, origins={key: read.origin(key) for key in read.lines})
        layer.variables = read.variables
        self.variables |= {name: read.origin(f"vars.{name}") for name in read.variables}
        for group, word in read.choices.items():
            self._choose_in(read, layer, group, word)
        self._anchor(read.values, read.folder)
        self.origins |= layer.origins
        self.layers.append(layer)
        for key, value in read.sweep.items():
            self._add_sweep(read, key, value)

    def _other_stage(self, name: str, stage: str) -> str:
        if stage in self.commands:
            advice = f"Try rlhf {stage} config={name}"
            return f"stage: {name} is for {stage}, not for {self.command.name}. {advice}"
        return f"stage: got {stage}; need one of {', '.join(self.commands)}, or leave it out"

    def _choose_in(self, read: Recipe, layer: Layer, group: str, word: str) -> None:
        if word in self._presets(group):
            self._choose_preset(layer, group, word, read.origin(group))
        elif "path" in field_types(self.groups[group]):
            values = layer.values.setdefault(group, {})
            if "path" in values:
                text = f"{group}.path: given beside {group}: {word}; need one of the two"
                self.problem(f"{group}.path", text, read.origin(group))
            values["path"] = word
            layer.origins[f"{group}.path"] = read.origin(group)
        else:
            self._no_option(group, word, read.origin(group))

    def _presets(self, group: str) -> list[str]:
        return sorted(presets.preset_files(group, self._preset_folders))

    def _choose_preset(self, layer: Layer, group: str, name: str, where: str) -> None:
        layer.choices[group], layer.origins[group] = name, where
        self.origins[group] = where
        try:
            own = presets.read_own_preset(group, name, self._preset_folders)
        except ConfigError as error:
            self.problem(group, str(error), where)
            del layer.choices[group]
            self.whole = False
            return
        if own:
            layer.presets[group] = own
            self.problems += [ConfigProblem("", text) for text in own.problems]
            self._anchor({group: own.values}, own.folder)
            self.origins |= {f"{group}.{key}": own.origin(key) for key in own.lines}

    def _no_option(self, group: str, word: str, origin: str) -> None:
        names = self._presets(group)
        needed = f"one of {', '.join(names)}, or keys" if names else "keys"
        key = next(iter(field_types(self.groups[group])))
        best = nearest(word, names)
        advice = f"Try {group}={best}" if best else f"Try {group}.{key}=VALUE"
        self.problem(group, f"{group}: got {word}; need {needed} below it. {advice}", origin)

    def _anchor(self, values: dict[str, Any], folder: Path) -> None:
        """Make relative paths absolute, where they mean the folder of the file they stand in."""
        for option in self.options.values():
            parent: Any = values
            for part in option.key.split(".")[:-1]:
                parent = parent.get(part) if isinstance(parent, dict) else None
            if isinstance(parent, dict) and option.name in parent:
                parent[option.name] = paths.anchor_all(option.type, parent[option.name], folder)

    def _add_sweep(self, read: Recipe, key: str, value: Any) -> None:
        where = read.origin(f"sweep.{key}")
        if "sweep" not in self.groups:
            text = f"sweep.{key}: sweeps are for training commands, not for {self.command.name}"
            self.problem(key, text, where)
            return
        kind = key_type(self.command.config, key)
        if kind is None:
            self._unknown(key, "", where)
            return
        if key in self.groups:
            kind = key_type(self.command.config, f"{key}.path") or Any
        items = paths.anchor_all(kind, value, read.folder) if isinstance(value, list) else value
        text = ",".join(map(in_grammar, items)) if isinstance(items, list) else str(items)
        parsed = parse_override(key, text)
        several = isinstance(items, list) or (parsed is not None and parsed.is_sweep_override())
        if not several or not items:
            shown = format_value(value)
            needed = f"need a list of values, as in sweep: {{{key}: [A, B]}}"
            self.problem(key, f"sweep.{key}: got {shown}; {needed}", where)
            return
        for item in items if isinstance(items, list) and key not in self.groups else []:
            refused = None if "${" in str(item) else self._accepts(f"{key}={to_text(item)}")
            if refused:
                needed = refused.need or "need another value"
                self.problem(key, f"sweep.{key}: got {format_value(item)}; {needed}", where)
        self.sweep[key] = Override(key, text), where

    def ignored_sweep(self, line: CommandLine) -> list[str]:
        """The line for a sweep of a recipe that does not run without `-m`."""
        swept = {key: where for key, (_, where) in self.sweep.items() if not line.sets(key)}
        if not swept:
            return []
        where = next(iter(swept.values()))
        return [f"sweep of {', '.join(swept)}: not run without -m; this is a single run  ({where})"]

    def _accepts(self, word: str) -> InvalidValue | None:
        return check_override(self.command, word)

    def add_overrides(self, overrides: list[Override]) -> None:
        """Add the layer of the command line."""
        layer = Layer()
        self._command_line = overrides
        self._typed |= {override.key: override.text for override in overrides}
        for override in overrides:
            if override.key in self.groups and not override.text.startswith("{"):
                self._choose(layer, override)
            else:
                self._set(override.key, override.text)
        self.layers.append(layer)

    def _choose(self, layer: Layer, override: Override) -> None:
        if override.text in self._presets(override.key):
            self._choose_preset(layer, override.key, override.text, COMMAND_LINE)
        elif "path" in field_types(self.groups[override.key]):
            self._set(f"{override.key}.path", override.text)
        else:
            self._no_option(override.key, override.text, COMMAND_LINE)

    def _set(self, key: str, text: str) -> None:
        if key.partition(".")[0] == VARIABLES:
            self._set_variable(key, text)
            return
        kind = key_type(self.command.config, key)
        if kind is None:
            self._unknown(key, text, COMMAND_LINE)
            return
        before = self._given.setdefault(key, text)  # `model=a model.path=b` says it by two names
        if before != text:
            self.problem(key, f"{key}: given twice, as {before} and as {text}; need it once")
            return
        self.origins[key] = COMMAND_LINE
        try:
            self.overrides.append(to_hydra(kind, key, text))
        except SeveralValues:
            self.problem(key, refused_sweep(kind, key, text))

    def _unknown(self, key: str, text: str, where: str) -> None:
        found = unknown_key(self.command, key, text, self._typed, self._accepts, self.commands)
        self.problem(key, found.line, where)
        self.meant.update(found.meant)

    def _set_variable(self, key: str, text: str) -> None:
        name = key.partition(".")[2].partition(".")[0]
        if name not in self.variables:
            self.problem(key, f"{key}: {self._no_variable(name)}")
            return
        try:
            self.variable_overrides.append(to_hydra(Any, key, text))
        except SeveralValues:
            self.problem(key, refused_sweep(Any, key, text))

    def _no_variable(self, name: str) -> str:
        """What is needed in place of a variable that no recipe has."""
        if not self.variables:
            return f"no recipe has variables; need vars: {{{name or 'NAME'}: VALUE}} in one"
        close = nearest(name, self.variables)
        advice = f"; did you mean {close}?" if close else ""
        return f"no such variable; the recipes have {', '.join(self.variables)}{advice}"

    def check_variables(self) -> bool:
        """Whether all variables that are used are defined; report them and those not used."""
        used: set[str] = set()
        undefined = False
        for key, text, where in self._texts():
            for name in _VARIABLE.findall(text):
                used.add(name)
                if name not in self.variables:
                    undefined = True
                    text = f"{key}: got ${{vars.{name}}}; {self._no_variable(name)}"
                    self.problem(key, text, where)
        for name in self.variables.keys() - used:
            text = f"vars.{name}: not used; use it as ${{vars.{name}}}, or leave it out"
            self.problem(f"vars.{name}", text, self.variables[name])
        return not undefined

    def _texts(self) -> Iterator[tuple[str, str, str]]:
        """Every text that may refer to a variable: key, text, where."""
        for layer in self.layers:
            own_presets = {group: own.values for group, own in layer.presets.items()}
            for tree in (layer.values, {VARIABLES: layer.variables}):
                for key, text in iterate_texts(tree):
                    yield key, text, origin(key, layer.origins)
            for key, text in iterate_texts(own_presets):
                yield key, text, origin(key, self.origins)
        for key, (override, where) in self.sweep.items():
            yield f"sweep.{key}", override.text, where
        for override in self._command_line:
            yield override.key, override.text, COMMAND_LINE


_VARIABLE = re.compile(r"(?<!\\)\$\{\s*vars\.(\w+)")
