"""`--dry-run`: what a command would do, need and take, with nothing trained or written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_cli.commands.dry_run.gpus import count_gpus
from rlhf_cli.commands.dry_run.inference import evaluate_sections, generate_sections
from rlhf_cli.commands.dry_run.section import Section, format_sections, to_json
from rlhf_cli.commands.dry_run.training import plan_training, sections
from rlhf_cli.config.command import Command
from rlhf_cli.console import muted
from rlhf_cli.errors import ConfigError, OutOfMemory
from rlhf_cli.memory.device import Device, find_device
from rlhf_cli.preflight.hub import fetch_named
from rlhf_cli.resolve import Resolved
from rlhf_cli.runs import folder, hub, log, manifest

Build = Callable[[Any, Device], tuple[list[Section], bool]]

_INFERENCE: dict[str, Build] = {"generate": generate_sections, "evaluate": evaluate_sections}


def run(command: Command, resolved: Resolved, *, as_json: bool = False) -> int:
    """Print the dry run of a command.

    Returns:
        The exit code: that of `OutOfMemory` where the command does not fit the device, else 0.

    Raises:
        ConfigError: the command has no dry run, or a model is not here.
        DataError: the rows cannot be read.
    """
    if not command.trains and command.name not in _INFERENCE:
        raise ConfigError(
            f"--dry-run: {command.name} has none; it is for training stages, "
            f"{' and '.join(_INFERENCE)}. Leave it out"
        )
    with log.redacted():
        found = _training(command, resolved) if command.trains else _inference(command, resolved)
    if found is None:
        print(f"already complete: {resolved.config.output_dir}", flush=True)
        return 0
    parts, fits = found
    head = f"dry run of rlhf {command.name}: nothing is loaded, trained or written"
    print(to_json(command.name, parts) if as_json else format_sections(head, parts), flush=True)
    return 0 if fits else OutOfMemory.exit_code


def _training(command: Command, resolved: Resolved) -> tuple[list[Section], bool] | None:
    """The report of a training stage, or None if the run is complete."""
    cfg = resolved.config
    out, decision = Path(cfg.output_dir).absolute(), "fresh"
    if cfg.output_dir:
        decision = folder.predict_decision(out, resolved.public_tree, command.name, cfg.resume)
    if decision == "complete":
        return None
    hub.set_commits(manifest.commits(out) if decision == "continue" else {})
    fetch_named(command, cfg, resolved.tree)
    device = _device(cfg)
    with muted():
        plan = plan_training(command.name, cfg, device, _processes(cfg), out)
    return sections(plan, _folder(command.name, cfg, decision)), plan.memory.estimate.fits


def _folder(stage: str, cfg: Any, decision: str) -> str:
    """The run folder, and what is in it."""
    if not cfg.output_dir:
        return f"runs/{stage}-<time>-<id>"
    if decision == "continue":
        checkpoints = folder.list_checkpoints(Path(cfg.output_dir))
        last = checkpoints[-1].name if checkpoints else "its start"
        return f"{cfg.output_dir}, which continues from {last}"
    return f"{cfg.output_dir}, new"


def _inference(command: Command, resolved: Resolved) -> tuple[list[Section], bool]:
    hub.set_commits({})
    fetch_named(command, resolved.config, resolved.tree)
    with muted():
        return _INFERENCE[command.name](resolved.config, _device(resolved.config))


def _device(cfg: Any) -> Device:
    return find_device(getattr(cfg, "device_memory", ""))


def _processes(cfg: Any) -> int:
    """Processes of a run; 0 in the configuration is one for each GPU."""
    return cfg.launch.processes or max(1, count_gpus())
