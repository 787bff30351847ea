"""`--dry-run`: what a command would do, need and take, with nothing trained.

Nothing is written either, but with `launch=slurm` the job script and its configuration.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlhf_cli.commands.dry_run.gpus import count_gpus
from rlhf_cli.commands.dry_run.inference import evaluate_sections, generate_sections
from rlhf_cli.commands.dry_run.section import Section, format_sections, section_values
from rlhf_cli.commands.dry_run.training import plan_training, sections
from rlhf_cli.config.command import Command
from rlhf_cli.console import muted
from rlhf_cli.errors import ConfigError, OutOfMemory
from rlhf_cli.launch.slurm import submit
from rlhf_cli.memory.device import Device, find_device, stated_gpu, with_memory
from rlhf_cli.preflight.hub import fetch_named
from rlhf_cli.resolve import Resolved
from rlhf_cli.runs import folder, hub, log, manifest

Found = tuple[list[Section], bool]
"""The report, and whether the command fits the device."""

_INFERENCE: dict[str, Callable[[Any, Device], Found]] = {
    "generate": generate_sections,
    "evaluate": evaluate_sections,
}


def run(command: Command, jobs: Mapping[str, Resolved], *, as_json: bool = False) -> int:
    """Print the dry run of a command, or of each job of a sweep.

    Args:
        command: to run.
        jobs: title of a job -> its configuration; without a sweep one with an empty title.
        as_json: print a JSON object, or a list of those of all jobs.

    Returns:
        The exit code: that of `OutOfMemory` where one does not fit the device, else 0.

    Raises:
        ConfigError: the command has no dry run, or a model is not here.
        DataError: the rows cannot be read.
    """
    if not command.trains and command.name not in _INFERENCE:
        raise ConfigError(
            f"--dry-run: {command.name} has none; it is for training stages, "
            f"{' and '.join(_INFERENCE)}. Leave it out"
        )
    values, all_fit = [], True
    for number, (title, resolved) in enumerate(jobs.items()):
        out = resolved.config.output_dir if command.trains else ""
        out = str(Path(out) / str(number)) if out and title else out
        with log.redacted():
            parts, fits = (
                _training(command, resolved, out)
                if command.trains
                else _inference(command, resolved)
            )
        all_fit &= fits
        values.append({"job": title} if title else {})
        values[-1] |= section_values(command.name, parts)
        if not as_json:
            job = f"job {number}: {title}\n\n" if title else ""
            text = format_sections(_head(command, resolved), parts) if parts else _complete(out)
            print(f"{job}{text}", end="\n\n" if title else "\n", flush=True)
    if as_json:
        print(json.dumps(values if len(jobs) > 1 else values[0], indent=2), flush=True)
    return 0 if all_fit else OutOfMemory.exit_code


def _head(command: Command, resolved: Resolved) -> str:
    slurm = command.trains and resolved.config.launch.kind == "slurm"
    last = "submitted" if slurm else "written"
    return f"dry run of rlhf {command.name}: nothing is loaded, trained or {last}"


def _complete(output_dir: str) -> str:
    return f"already complete: {output_dir}"


def _training(command: Command, resolved: Resolved, output_dir: str) -> Found:
    """The report of a training stage, empty if the run is complete."""
    cfg, out = resolved.config, Path(output_dir).absolute()
    decision = "fresh"
    if output_dir:
        decision = folder.predict_decision(out, resolved.public_tree, command.name, cfg.resume)
    if decision == "complete":
        return [], True
    hub.set_commits(manifest.commits(out) if decision == "continue" else {})
    fetch_named(command, cfg, resolved.tree)
    with muted():
        plan = plan_training(
            command.name, cfg, _device(cfg), _processes(cfg), out, _steps_done(out, decision)
        )
    where = _folder(command.name, output_dir, decision)
    job = [_write_job(command, resolved)] if cfg.launch.kind == "slurm" else []
    return [*sections(plan, where), *job], plan.memory.estimate.fits


def _write_job(command: Command, resolved: Resolved) -> Section:
    """Write the job of a run with `launch=slurm`, and show it."""
    job = submit.write(command, resolved)
    lines = [("script", str(job.script)), ("submit", shlex.join(["sbatch", str(job.script)]))]
    return Section("job", lines, {"script": str(job.script), "text": job.text}, job.text)


def _steps_done(out: Path, decision: str) -> int:
    """Steps of the newest checkpoint of an unfinished run."""
    if decision != "continue":
        return 0
    return int(folder.list_checkpoints(out)[-1].name.removeprefix("step-"))


def _folder(stage: str, output_dir: str, decision: str) -> str:
    """The run folder, and what is in it."""
    if not output_dir:
        return f"runs/{stage}-<time>-<id>"
    if decision == "continue":
        last = folder.list_checkpoints(Path(output_dir))[-1].name
        return f"{output_dir}, whose run continues from {last}"
    return output_dir


def _inference(command: Command, resolved: Resolved) -> Found:
    hub.set_commits({})
    fetch_named(command, resolved.config, resolved.tree)
    with muted():
        return _INFERENCE[command.name](resolved.config, _device(resolved.config))


def _device(cfg: Any) -> Device:
    """The device that is here; where that is a CPU, `device_memory` means a GPU that is not."""
    found = find_device()
    if not cfg.device_memory:
        return found
    stated = cfg.device_memory
    return stated_gpu(stated) if found.kind == "cpu" else with_memory(found, stated)


def _processes(cfg: Any) -> int:
    """Processes of a run; 0 in the configuration is one for each GPU."""
    return cfg.launch.started or max(1, count_gpus())
