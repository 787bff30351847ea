"""Sweeps: Hydra's sweepers choose the jobs, its launchers start them, each runs by itself."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from rlhf_cli.config.args import CommandLine
from rlhf_cli.config.command import Command
from rlhf_cli.config.overrides import quote
from rlhf_cli.config.suggest import nearest
from rlhf_cli.config.yaml_files import to_yaml
from rlhf_cli.errors import CheckpointError, ConfigError, RlhfError
from rlhf_cli.runs import folder, lock, manifest
from rlhf_cli.runs.files import unwritable
from rlhf_cli.sweep import jobs, table
from rlhf_cli.sweep.config import Objective
from rlhf_cli.sweep.plan import Sweep, from_hydra, plan


def run(command: Command, line: CommandLine) -> int:
    """Check all jobs, run them, and return the exit code: 1 if any failed.

    Raises:
        ConfigError: The sweep, a job or a plugin of Hydra is not right; nothing has run.
        KeyboardInterrupt: A signal ended it; the same command goes on.
    """
    if not command.trains:
        raise ConfigError(f"-m: sweeps are for training commands, not for {command.name}")
    if any(word.startswith("hydra.sweeper.direction=max") for word in line.for_hydra):
        raise ConfigError(
            "hydra.sweeper.direction: got maximize, but a sweeper is given a number to minimize. "
            "Leave it out, and try sweep.mode=max"
        )
    sweep = plan(command, line)
    if line.show_config:
        print(_shown(sweep), end="", flush=True)
        return 0
    out = _claim(sweep)
    try:
        jobs.forget_unfinished(out)
        _launch(sweep, out)
    finally:
        lock.release(out)
        _finish(out, sweep.objective)
    return _report(sweep, out)


def _shown(sweep: Sweep) -> str:
    """The configuration of every job, as YAML documents."""
    head = [
        f"# job {i}: {' '.join(f'{setting.key}={setting.text}' for setting in job.settings)}\n"
        for i, job in enumerate(sweep.jobs)
    ]
    body = [to_yaml(sweep.command.name, job.resolved.public_tree) for job in sweep.jobs]
    return "---\n".join(first + rest for first, rest in zip(head, body, strict=True))


def _claim(sweep: Sweep) -> Path:
    """The folder of the sweep, owned by this process; every job in it can run or is done."""
    out = folder.allocate(f"{sweep.command.name}-sweep", sweep.output_dir)
    if (out / manifest.NAME).is_file():
        raise ConfigError(f"output_dir: {out} holds a run; a sweep needs a folder of its own")
    if sweep.is_grid:
        _require_room(sweep, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(out)
    except OSError as error:
        raise unwritable(out, error) from None
    return out


def _require_room(sweep: Sweep, out: Path) -> None:
    refused = []
    for i, job in enumerate(sweep.jobs):
        try:
            config = job.resolved.config
            tree = job.resolved.public_tree
            folder.foresee(out / str(i), tree, sweep.command.name, config.resume)
        except (ConfigError, CheckpointError) as error:
            refused.append(str(error))
    if refused:
        raise ConfigError("\n".join(refused))


def _launch(sweep: Sweep, out: Path) -> None:
    name = sweep.command.name
    ConfigStore.instance().store(name=name, node=asdict(sweep.command.config()))
    task = _task(_words(sweep), out, sweep.objective)
    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null"]
    words = [*sweep.swept, *quiet, *sweep.line.for_hydra, f"hydra.sweep.dir={quote(str(out))}"]
    try:
        with _argv(["rlhf", "--multirun", *words]):
            hydra.main(version_base="1.3", config_path=None, config_name=name)(task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise _refusal(error) from None


def _words(sweep: Sweep) -> list[str]:
    """The command line that all jobs share."""
    recipes = [f"config={name}" for name in sweep.line.recipes]
    own = ("output_dir", "sweep.metric", "sweep.mode")
    settings = [f"{s.key}={s.text}" for s in sweep.line.overrides if s.key not in own]
    return [sweep.command.name, *recipes, *settings]


def _task(words: list[str], out: Path, objective: Objective) -> Callable[[Any], float]:
    """What Hydra calls for a job, here or in a process of a launcher's.

    Its result is what a sweeper minimizes.
    """

    def task(config: Any) -> float:
        chosen = HydraConfig.get()
        settings = [from_hydra(word) for word in chosen.overrides.task]
        return jobs.run(words, settings, out, int(chosen.job.num), objective)

    return task


@contextmanager
def _argv(words: list[str]) -> Iterator[None]:
    """`hydra.main` reads the command line itself, and by this variable raises what goes wrong."""
    before, variable = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = words, "1"
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


def _refusal(error: Exception) -> RlhfError:
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
    """Write the table, or remove a folder in which nothing has run."""
    if jobs.rows(out, objective):
        jobs.write_table(out, objective)
        return
    with suppress(OSError):
        (out / "multirun.yaml").unlink(missing_ok=True)
        out.rmdir()


def _report(sweep: Sweep, out: Path) -> int:
    """Print the table, the best run and the folders of those that failed."""
    rows, objective = jobs.rows(out, sweep.objective), sweep.objective
    failed = [row for row in rows if row["exit_code"] != 0]
    for row in failed:
        told = f"job {row['job']}: {row['status']} with exit code {row['exit_code']}"
        print(f"{told}: {row['folder']}", file=sys.stderr)
    done = len(rows) - len(failed)
    settings = dict.fromkeys(setting.key for job in sweep.jobs for setting in job.settings)
    if rows:
        print(table.as_text(rows, list(settings), objective))
    best = next((row for row in rows if row[table.RANK] == 1), None)
    if best:
        name = table.shown_metric(rows, objective)
        print(f"best by {name} ({objective.mode}): job {best['job']}: {best['folder']}")
    elif done:
        print(f"sweep.metric: no job has {objective.metric}; {_has(rows)}", file=sys.stderr)
    print(f"sweep: {done} of {len(rows)} jobs complete -> {out / jobs.TABLE}", flush=True)
    return 1 if failed else 0


def _has(rows: list[dict[str, Any]]) -> str:
    names = dict.fromkeys(name for row in rows for name in row if name.startswith("eval/"))
    return f"they have {', '.join(names)}" if names else "they have no held-out rows"
