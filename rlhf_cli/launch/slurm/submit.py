"""`launch=slurm`: write the job of a run into its folder, and submit it."""

import contextlib
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_cli.config.command import Command
from rlhf_cli.config.provenance import DEFAULT, trace
from rlhf_cli.config.schema import options
from rlhf_cli.config.yaml_files import to_yaml
from rlhf_cli.console import print_result
from rlhf_cli.errors import CheckpointError, ConfigError
from rlhf_cli.launch.slurm import cluster
from rlhf_cli.launch.slurm.script import render
from rlhf_cli.preflight.hub import fetch_named
from rlhf_cli.resolve import Resolved
from rlhf_cli.runs import folder, hub, lock, manifest
from rlhf_cli.runs.run_files import (
    JOB_CONFIG,
    JOB_LOG,
    JOB_SCRIPT,
    write_error,
    write_text_atomic,
)


@dataclass(frozen=True)
class WrittenJob:
    """The job of a run, which can be submitted.

    Attributes:
        out: the run folder.
        text: of the job script.
    """

    out: Path
    text: str

    @property
    def script(self) -> Path:
        """Path of the job script."""
        return self.out / JOB_SCRIPT

    @property
    def log(self) -> Path:
        """Path of the file that gets the output of the job."""
        return self.out / JOB_LOG


def run(command: Command, resolved: Resolved) -> None:
    """Submit the run as a job, and print its number and how to watch it.

    Raises:
        ConfigError: Slurm is not here, or refuses a key; the run folder holds another run.
        CheckpointError: a job of the run folder is in the queue, or a process owns the folder.
        RlhfError: Slurm does not answer, or refuses the job.
    """
    with _new_folder(command, resolved) as out:
        decision = _decide(command, resolved, out)
        if decision == "complete":
            print_result(f"already complete: {out}", {"status": decision, "output_dir": str(out)})
            return
        cluster.require_slurm()
        _require_no_job(out)
        hub.set_commits(manifest.commits(out) if decision == "continue" else {})
        fetch_named(command, resolved.config, resolved.tree)  # nodes often have no network
        with _removed_on_failure(out):
            job = _write(command, resolved, out)
            number = cluster.submit(job.script, resolved.config.launch.slurm)
    _show(job, number)


def write(command: Command, resolved: Resolved) -> WrittenJob:
    """Write the job of a run into its folder, and submit nothing.

    Raises:
        ConfigError: the template is unusable; the run folder holds another run.
        CheckpointError: the folder cannot be written.
    """
    with _new_folder(command, resolved) as out:
        _decide(command, resolved, out)
        return _write(command, resolved, out)


@contextmanager
def _new_folder(command: Command, resolved: Resolved) -> Iterator[Path]:
    """The run folder; a new one is removed at the end of the block if it is empty."""
    out = folder.allocate(command.name, resolved.config.output_dir)
    try:
        yield out
    finally:
        if not resolved.config.output_dir:
            with contextlib.suppress(OSError):
                out.rmdir()


def _decide(command: Command, resolved: Resolved, out: Path) -> folder.Decision:
    cfg = resolved.config
    if cfg.resume not in ("auto", "never") and cfg.launch.slurm.requeue:
        raise ConfigError(
            f"resume: got {cfg.resume} with launch.slurm.requeue=true, so each requeued job would "
            "start from that checkpoint again. Try launch.slurm.requeue=false"
        )
    return folder.predict_decision(out, resolved.public_tree, command.name, cfg.resume)


def _require_no_job(out: Path) -> None:
    """Refuse a run folder that a job or a process has."""
    job = cluster.find_job(out / JOB_SCRIPT)
    if job is not None:
        raise CheckpointError(
            f"output_dir: {out} is that of job {job.id}, which is {job.state.lower()}. Wait for "
            f"it, end it by scancel {job.id}, or use another output_dir"
        )
    if out.is_dir():
        try:
            lock.acquire(out)
        except OSError as error:
            raise write_error(out, error) from None
        lock.release(out)


@contextmanager
def _removed_on_failure(out: Path) -> Iterator[None]:
    """Remove the files of a job that was not submitted, and a folder that was new."""
    is_new = not out.exists() or not any(out.iterdir())
    try:
        yield
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                for name in (JOB_SCRIPT, JOB_CONFIG):
                    (out / name).unlink(missing_ok=True)
                out.rmdir()
        raise


def _write(command: Command, resolved: Resolved, out: Path) -> WrittenJob:
    text = render(resolved.config.launch.slurm, command.name, out, _settings(resolved.config))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(out, error) from None
    write_text_atomic(out / JOB_CONFIG, to_yaml(command.name, _set_values(command, resolved)))
    write_text_atomic(out / JOB_SCRIPT, text)
    return WrittenJob(out, text)


def _settings(cfg: Any) -> list[str]:
    """Arguments of the run inside the job, beside its configuration file."""
    resume = [] if cfg.resume in ("auto", "never") else [f"resume={cfg.resume}"]
    return ["launch=local", f"launch.processes={cfg.launch.started}", *resume]


def _set_values(command: Command, resolved: Resolved) -> dict[str, Any]:
    """The keys of a run that somebody set, nested; what the job reads, whatever changes later."""
    tree = manifest.config_to_save(resolved.public_tree)
    origins = trace(resolved.public_tree, resolved.layers, resolved.overrides)
    chosen = {key for key, where in origins.items() if where != DEFAULT}
    found: dict[str, Any] = {}
    for key in options(command.config):
        if not any(one == key or one.startswith(f"{key}.") for one in chosen):
            continue
        *groups, name = key.split(".")
        target, source = found, tree
        for group in groups:
            target, source = target.setdefault(group, {}), source[group]
        if name in source:
            target[name] = source[name]
    return found


def _show(job: WrittenJob, number: str) -> None:
    lines = {
        "run folder": job.out,
        "script": job.script,
        "state": f"squeue --job {number}",
        "log": shlex.join(["tail", "-F", str(job.log)]),
        "cancel": f"scancel {number}",
    }
    text = "\n".join([f"submitted: job {number}", *(f"  {k:<12}{v}" for k, v in lines.items())])
    values = {"status": "submitted", "job": number, "output_dir": str(job.out)}
    print_result(text, {**values, "script": str(job.script), "log": str(job.log)})
