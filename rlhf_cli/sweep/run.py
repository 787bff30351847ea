"""Sweeps: check every job, then let Hydra's sweeper choose jobs and its launcher start them."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.core.override_parser.types import Override as HydraOverride
from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from rlhf_cli.config.args import CommandLine, Override
from rlhf_cli.config.command import Command
from rlhf_cli.config.overrides import comma_for_point, parse_override, quote, refused_sweep, to_text
from rlhf_cli.config.provenance import COMMAND_LINE
from rlhf_cli.config.schema import groups, options
from rlhf_cli.config.suggest import nearest
from rlhf_cli.config.yaml_files import to_yaml
from rlhf_cli.console import logger
from rlhf_cli.errors import CheckpointError, ConfigError, DataError, RlhfError
from rlhf_cli.report.write import write_at_end
from rlhf_cli.resolve import Resolved, print_notes, recipe_sweep, resolve
from rlhf_cli.runs import folder, lock, manifest
from rlhf_cli.runs.run_files import write_error
from rlhf_cli.sweep import jobs
from rlhf_cli.sweep.config import Objective

_CHOSEN = "._chosen"
"""Suffix under which Hydra sees the choice of a group, so that keys of the group can be set too."""


@dataclass(frozen=True)
class Job:
    """Overrides of one job, and its resolved configuration."""

    settings: list[Override]
    resolved: Resolved

    @property
    def title(self) -> str:
        """The overrides, as on the command line."""
        return " ".join(f"{setting.key}={setting.text}" for setting in self.settings)


@dataclass(frozen=True)
class Sweep:
    """A sweep whose jobs have all been checked.

    Attributes:
        command: a training command.
        line: the command line that all jobs share, without the swept keys.
        swept: the swept keys as overrides for Hydra's sweeper.
        jobs: the grid in the basic sweeper's order; both ends of an interval.
    """

    command: Command
    line: CommandLine
    swept: list[str]
    jobs: list[Job]

    @property
    def output_dir(self) -> str:
        """Folder of the sweep as given; empty for a new one."""
        return str(self.jobs[0].resolved.config.output_dir)

    @property
    def objective(self) -> Objective:
        """Metric by which the jobs are compared, the same for all of them."""
        found: Objective = self.jobs[0].resolved.config.objective
        return found

    @property
    def is_grid(self) -> bool:
        """Whether all jobs are known now; other sweepers choose them one after another."""
        return not any("hydra/sweeper" in arg for arg in self.line.for_hydra)


def plan_sweep(command: Command, line: CommandLine) -> Sweep:
    """Check every job of a sweep.

    Raises:
        ConfigError: a job cannot run; the message has a line for every problem of every job.
        DataError: the same, if all problems are data paths.
    """
    if not command.trains:
        raise ConfigError(f"-m: sweeps are for training commands, not for {command.name}")
    line = replace(line, overrides=[*line.overrides, *recipe_sweep(command, line)])
    fixed, swept, problems = _split(command, line)
    common = replace(line, overrides=fixed, problems=[*line.problems, *problems])
    checked, refused = [], []
    for settings in _grid(swept):
        try:
            job_line = replace(common, overrides=[*fixed, *settings])
            checked.append(Job(settings, resolve(command, job_line)))
        except RlhfError as error:
            refused.append(error)
    refused += _differing_objectives(checked)
    if any(job.resolved.config.launch.kind == "slurm" for job in checked):
        refused.append(ConfigError(_NO_JOBS_OF_SLURM))
    folders = {job.resolved.config.output_dir for job in checked}
    if len(folders) > 1:
        text = "output_dir: differs between the jobs; need one folder, in which they are numbered"
        refused.append(ConfigError(f"{text}. Try output_dir=runs/{command.name}-sweep"))
    print_notes(note for job in checked for note in job.resolved.notes)
    if refused:
        raise _combine(refused)
    return Sweep(command, common, [override.input_line or "" for override in swept], checked)


_NO_JOBS_OF_SLURM = (
    "launch: got slurm with -m; a sweep waits for its runs, which Hydra's launcher submits. "
    "Try launch=local hydra/launcher=submitit_slurm"
)


def _differing_objectives(checked: list[Job]) -> list[RlhfError]:
    """Report jobs that cannot be ranked because their objectives differ."""
    objectives = dict.fromkeys(job.resolved.config.objective for job in checked)
    if len(objectives) < 2:
        return []
    named = ", ".join(f"{objective.metric} {objective.mode}" for objective in objectives)
    return [
        ConfigError(
            f"sweep.metric: differs between the jobs ({named}); need one to compare them by. "
            "Try sweep.metric=eval/loss sweep.mode=min"
        )
    ]


def _combine(refused: list[RlhfError]) -> RlhfError:
    kind = DataError if all(isinstance(error, DataError) for error in refused) else ConfigError
    lines = [line for error in refused for line in str(error).split("\n")]
    return kind("\n".join(dict.fromkeys(lines)))


def _split(
    command: Command, line: CommandLine
) -> tuple[list[Override], list[HydraOverride], list[str]]:
    """Split settings into fixed ones and swept ones (parsed by Hydra), and list the problems."""
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
    choices = [_interval_ends(override) for override in swept]
    grid = BasicSweeper.split_arguments(choices, max_batch_size=None)[0]
    return [[from_hydra(arg) for arg in job] for job in grid]


def _interval_ends(override: HydraOverride) -> HydraOverride:
    """Replace an interval, whose values the sweeper chooses later, by its two ends."""
    value = override.value()
    if not isinstance(value, IntervalSweep):
        return override
    key = override.get_key_element()
    return OverridesParser.create().parse_override(f"{key}=choice({value.start},{value.end})")


def from_hydra(arg: str) -> Override:
    """Convert one of Hydra's job overrides to the setting that a user would type."""
    override = OverridesParser.create().parse_override(arg)
    return Override(override.key_or_group.removesuffix(_CHOSEN), to_text(override.value()))


def run(command: Command, line: CommandLine) -> int:
    """Check all jobs, run them, and return the exit code: 1 if any failed.

    Raises:
        ConfigError: the sweep, a job or a Hydra plugin is invalid; nothing has run.
        KeyboardInterrupt: a signal ended the sweep; the same command continues it.
    """
    if any(arg.startswith("hydra.sweeper.direction=max") for arg in line.for_hydra):
        raise ConfigError(
            "hydra.sweeper.direction: got maximize, but a sweeper is given a number to minimize. "
            "Leave it out, and try sweep.mode=max"
        )
    sweep = plan_sweep(command, line)
    if line.show_config:
        print(_format_configs(sweep), end="", flush=True)
        return 0
    out = _claim(sweep)
    try:
        jobs.remove_unfinished(out)
        _launch(sweep, out)
    finally:
        lock.release(out)
        _finish(out, sweep.objective)
    return _report(sweep, out)


def _format_configs(sweep: Sweep) -> str:
    """Format the configuration of every job as YAML documents."""
    head = [f"# job {i}: {job.title}\n" for i, job in enumerate(sweep.jobs)]
    body = [to_yaml(sweep.command.name, job.resolved.public_tree) for job in sweep.jobs]
    return "---\n".join(first + rest for first, rest in zip(head, body, strict=True))


def _claim(sweep: Sweep) -> Path:
    """Create and lock the folder of the sweep; every job in it can run or is complete."""
    out = folder.allocate(f"{sweep.command.name}-sweep", sweep.output_dir)
    if (out / manifest.NAME).is_file():
        raise ConfigError(f"output_dir: {out} holds a run; a sweep needs a folder of its own")
    if sweep.is_grid:
        _require_free_folders(sweep, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(out)
    except OSError as error:
        raise write_error(out, error) from None
    return out


def _require_free_folders(sweep: Sweep, out: Path) -> None:
    refused = []
    for i, job in enumerate(sweep.jobs):
        try:
            config = job.resolved.config
            tree = job.resolved.public_tree
            folder.predict_decision(out / str(i), tree, sweep.command.name, config.resume)
        except (ConfigError, CheckpointError) as error:
            refused.append(str(error))
    if refused:
        raise ConfigError("\n".join(refused))


def _launch(sweep: Sweep, out: Path) -> None:
    name = sweep.command.name
    ConfigStore.instance().store(name=name, node=asdict(sweep.command.config()))
    task = _task(_common_args(sweep), out, sweep.objective)
    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null"]
    args = [*sweep.swept, *quiet, *sweep.line.for_hydra, f"hydra.sweep.dir={quote(str(out))}"]
    try:
        with _argv(["rlhf", "--multirun", *args]):
            hydra.main(version_base="1.3", config_path=None, config_name=name)(task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise _hydra_error(error) from None


def _common_args(sweep: Sweep) -> list[str]:
    """Command-line arguments that all jobs share."""
    recipes = [f"config={name}" for name in sweep.line.recipes]
    own = ("output_dir", "sweep.metric", "sweep.mode")
    settings = [f"{s.key}={s.text}" for s in sweep.line.overrides if s.key not in own]
    return [sweep.command.name, *recipes, *settings]


def _task(args: list[str], out: Path, objective: Objective) -> Callable[[Any], float]:
    """Build the function that runs one job and returns its objective to Hydra.

    A Hydra launcher may call it in a process of its own.
    """

    def task(config: Any) -> float:
        chosen = HydraConfig.get()
        settings = [from_hydra(arg) for arg in chosen.overrides.task]
        return jobs.run_job(args, settings, out, int(chosen.job.num), objective)

    return task


@contextmanager
def _argv(args: list[str]) -> Iterator[None]:
    """Set the command line that `hydra.main` reads, and make it raise its errors."""
    before, variable = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = args, "1"
    try:
        yield
    finally:
        sys.argv = before
        os.environ.pop("HYDRA_FULL_ERROR")
        if variable is not None:
            os.environ["HYDRA_FULL_ERROR"] = variable


_PLUGINS = {
    "hydra/launcher": ("joblib", "ray", "rq", "submitit"),
    "hydra/sweeper": ("ax", "nevergrad", "optuna"),
}


def _hydra_error(error: Exception) -> RlhfError:
    """Convert an error of Hydra; one of a missing plugin names the package to install."""
    missing = getattr(error, "missing_cfg_file", None)
    if isinstance(error, MissingConfigException) and missing:
        group, _, name = str(missing).rpartition("/")
        return ConfigError(_missing_plugin(group, name, list(error.options or [])))
    causes = [cause for cause in (error, error.__cause__) if cause]
    reasons = [str(cause).partition("\n")[0].rstrip(".") for cause in causes]
    text = re.sub(r"\s+", " ", ": ".join(reasons)).strip()
    advice = ". Try hydra/sweeper=optuna" if "INTERVAL_SWEEP" in text else ""
    return ConfigError(f"-m: Hydra refuses the sweep: {text}{advice}")


def _missing_plugin(group: str, name: str, installed: list[str]) -> str:
    plugin = name.partition("_")[0]  # submitit_local and submitit_slurm are of one package
    if plugin in _PLUGINS.get(group, ()):
        package = f"hydra-{plugin}-{group.rpartition('/')[2]}"
        return f"{group}: got {name}, which is not installed. Try pip install {package}"
    names = [*installed, *_PLUGINS.get(group, ())]
    close = nearest(name, names)
    advice = f". Try {group}={close}" if close else ""
    return f"{group}: got {name}; need one of {', '.join(dict.fromkeys(names))}{advice}"


def _finish(out: Path, objective: Objective) -> None:
    """Write the table and the report, or remove the folder if no job has run."""
    if jobs.read_rows(out, objective):
        jobs.write_table(out, objective)
        write_at_end(out)
        return
    with suppress(OSError):
        (out / "multirun.yaml").unlink(missing_ok=True)
        out.rmdir()


def _report(sweep: Sweep, out: Path) -> int:
    """Print the table, the best job and the folders of failed jobs."""
    rows, objective = jobs.read_rows(out, sweep.objective), sweep.objective
    failed = [row for row in rows if row["exit_code"] != 0]
    for row in failed:
        failure = f"job {row['job']}: {row['status']} with exit code {row['exit_code']}"
        logger.info(f"{failure}: {row['folder']}")
    done = len(rows) - len(failed)
    settings = dict.fromkeys(setting.key for job in sweep.jobs for setting in job.settings)
    if rows:
        print(jobs.format_rows(rows, list(settings), objective))
    best = next((row for row in rows if row[jobs.RANK] == 1), None)
    if best:
        name = jobs.shown_metric(rows, objective)
        print(f"best by {name} ({objective.mode}): job {best['job']}: {best['folder']}")
    elif done:
        logger.info(f"sweep.metric: no job has {objective.metric}; {_available(rows)}")
    print(f"sweep: {done} of {len(rows)} jobs complete -> {out / jobs.TABLE}", flush=True)
    return 1 if failed else 0


def _available(rows: list[dict[str, Any]]) -> str:
    names = dict.fromkeys(name for row in rows for name in row if name.startswith("eval/"))
    return f"they have {', '.join(names)}" if names else "they have no held-out rows"
