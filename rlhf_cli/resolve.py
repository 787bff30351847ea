"""Resolution of a command line and its recipes into a checked configuration."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rlhf_cli.config.args import CommandLine, Override
from rlhf_cli.config.check import ConfigProblem, check, origin
from rlhf_cli.config.command import Command
from rlhf_cli.config.compose import Layer, compose_tree
from rlhf_cli.config.layers import LayerBuilder
from rlhf_cli.config.provenance import COMMAND_LINE
from rlhf_cli.config.references import find_references, literal_secrets, with_references
from rlhf_cli.errors import ConfigError, DataError, RlhfError
from rlhf_cli.registry import COMMANDS
from rlhf_cli.runs import log


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

    notes: list[str] = field(default_factory=list)
    """A line for each key or value that was given by an older name."""

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
    builder = LayerBuilder(command, COMMANDS)
    builder.problems += [ConfigProblem("", text) for text in line.problems]
    for name in line.recipes:
        builder.add_recipe(name)
    builder.add_overrides(line.overrides)
    notes = [*line.notes, *builder.notes]
    if not line.multirun:  # the jobs of a sweep have theirs in common
        print_notes(notes + builder.ignored_sweep(line))
    if not builder.check_variables():
        raise _refusal(builder.problems)
    try:
        composed = compose_tree(
            command, builder.layers, [*builder.overrides, *builder.variable_overrides]
        )
    except ConfigError as error:
        raise _refusal([*builder.problems, ConfigProblem("", str(error))]) from None
    references = find_references(composed.raw, composed.tree)
    log.set_secret_references(references)
    for key, text in literal_secrets(composed.raw):
        builder.problem(key, text, origin(key, builder.origins) or COMMAND_LINE)
    checked = check(
        command,
        composed.tree,
        builder.origins,
        commands=COMMANDS,
        whole=builder.whole,
        meant=builder.meant,
    )
    problems = [*builder.problems, *checked.problems]
    if problems:
        raise _refusal(problems)
    layers, overrides = builder.layers, builder.overrides
    return Resolved(checked.config, checked.tree, layers, overrides, references, notes)


def print_notes(notes: Iterable[str]) -> None:
    """Print what the user is to know about what was accepted, each line once."""
    for note in dict.fromkeys(notes):
        print(f"note: {note}", file=sys.stderr)


def recipe_sweep(command: Command, line: CommandLine) -> list[Override]:
    """The overrides that the recipes sweep and the command line does not set."""
    builder = LayerBuilder(command, COMMANDS)
    for name in line.recipes:
        builder.add_recipe(name)
    return [override for key, (override, _) in builder.sweep.items() if not line.sets(key)]


def _refusal(problems: list[ConfigProblem]) -> RlhfError:
    kind = DataError if all(problem.about_data for problem in problems) else ConfigError
    return kind("\n".join(dict.fromkeys(problem.text for problem in problems)))
