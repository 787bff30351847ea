"""The jobs of a sweep: which words take several values, and whether every job can run."""

from dataclasses import dataclass, replace

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.core.override_parser.types import Override as HydraOverride

from rlhf_cli.config.args import CommandLine, Override
from rlhf_cli.config.command import Command
from rlhf_cli.config.overrides import comma_for_point, parse_override, refused_sweep, to_text
from rlhf_cli.config.provenance import COMMAND_LINE
from rlhf_cli.config.schema import groups, options
from rlhf_cli.errors import ConfigError, DataError, RlhfError
from rlhf_cli.resolve import Resolved, print_notes, recipe_sweep, resolve
from rlhf_cli.sweep.config import Objective

_CHOSEN = "._chosen"
"""Under this name Hydra sees the word given to a group, so that keys of the group stand beside."""


@dataclass(frozen=True)
class Job:
    """What one job sets beyond the words that all have, and the configuration it gets."""

    settings: list[Override]
    resolved: Resolved


@dataclass(frozen=True)
class Sweep:
    """A sweep whose jobs have all been checked."""

    command: Command
    line: CommandLine
    """What every job has, without the swept keys."""

    swept: list[str]
    """The swept keys as overrides for Hydra's sweeper."""

    jobs: list[Job]
    """The grid in the basic sweeper's order; of an interval, both ends."""

    @property
    def output_dir(self) -> str:
        """The folder of the sweep; empty for a new one."""
        return str(self.jobs[0].resolved.config.output_dir)

    @property
    def objective(self) -> Objective:
        """What the jobs are compared by, which is the same for all of them."""
        found: Objective = self.jobs[0].resolved.config.objective
        return found

    @property
    def is_grid(self) -> bool:
        """Whether the jobs are known; other sweepers choose them while they run."""
        return not any("hydra/sweeper" in word for word in self.line.for_hydra)


def plan(command: Command, line: CommandLine) -> Sweep:
    """Check every job of a sweep.

    Raises:
        ConfigError: A job cannot run; the message has a line for every problem of every job.
        DataError: The same, and all that is wrong are paths of data.
    """
    line = replace(line, overrides=[*line.overrides, *recipe_sweep(command, line)])
    fixed, swept, problems = _split(command, line)
    common = replace(line, overrides=fixed, problems=[*line.problems, *problems])
    jobs, refused = [], []
    for settings in _grid(swept):
        try:
            words = replace(common, overrides=[*fixed, *settings])
            jobs.append(Job(settings, resolve(command, words)))
        except RlhfError as error:
            refused.append(error)
    refused += _unlike_objectives(jobs)
    folders = {job.resolved.config.output_dir for job in jobs}
    if len(folders) > 1:
        text = "output_dir: differs between the jobs; need one folder, in which they are numbered"
        refused.append(ConfigError(f"{text}. Try output_dir=runs/{command.name}-sweep"))
    print_notes(note for job in jobs for note in job.resolved.notes)
    if refused:
        raise _all(refused)
    return Sweep(command, common, [override.input_line or "" for override in swept], jobs)


def _unlike_objectives(jobs: list[Job]) -> list[RlhfError]:
    """What is wrong with jobs that cannot be ranked, because each has a metric of its own."""
    objectives = dict.fromkeys(job.resolved.config.objective for job in jobs)
    if len(objectives) < 2:
        return []
    named = ", ".join(f"{objective.metric} {objective.mode}" for objective in objectives)
    return [
        ConfigError(
            f"sweep.metric: differs between the jobs ({named}); need one to compare them by. "
            "Try sweep.metric=eval/loss sweep.mode=min"
        )
    ]


def _all(refused: list[RlhfError]) -> RlhfError:
    kind = DataError if all(isinstance(error, DataError) for error in refused) else ConfigError
    lines = [line for error in refused for line in str(error).split("\n")]
    return kind("\n".join(dict.fromkeys(lines)))


def _split(
    command: Command, line: CommandLine
) -> tuple[list[Override], list[HydraOverride], list[str]]:
    """The settings of one value, those of several as Hydra reads them, and what is wrong."""
    known, choices = options(command.config), groups(command.config)
    fixed, swept, problems = [], [], []
    for setting in line.overrides:
        key = setting.key + (_CHOSEN if setting.key in choices else "")
        parsed = parse_override(key, setting.text)
        kind = known[setting.key].type if setting.key in known else None
        if parsed is None or not parsed.is_sweep_override():
            fixed.append(setting)
        elif comma_for_point(kind, setting.text):
            text = refused_sweep(kind, setting.key, setting.text)
            problems.append(f"{text}  ({COMMAND_LINE})")
        else:
            swept.append(parsed)
    return fixed, swept, problems


def _grid(swept: list[HydraOverride]) -> list[list[Override]]:
    ends = [_ends(override) for override in swept]
    jobs = BasicSweeper.split_arguments(ends, max_batch_size=None)[0]
    return [[from_hydra(word) for word in job] for job in jobs]


def _ends(override: HydraOverride) -> HydraOverride:
    value = override.value()
    if not isinstance(value, IntervalSweep):
        return override
    key = override.get_key_element()
    return OverridesParser.create().parse_override(f"{key}=choice({value.start},{value.end})")


def from_hydra(word: str) -> Override:
    """The setting that one of Hydra's job overrides stands for, as a user would type it."""
    override = OverridesParser.create().parse_override(word)
    return Override(override.key_or_group.removesuffix(_CHOSEN), to_text(override.value()))
