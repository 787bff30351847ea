"""The job script of a run: its fields, the shipped template and the user's own."""

import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rlhf_cli.config.suggest import nearest
from rlhf_cli.errors import ConfigError
from rlhf_cli.launch.slurm.config import SlurmConfig
from rlhf_cli.runs.run_files import JOB_CONFIG, JOB_LOG, JOB_SCRIPT

TEMPLATE = Path(__file__).parent / "job.sbatch"

NEEDED = ("directives", "command")
"""Fields without which a template has no effect: the options of sbatch, and the run itself."""

_FIELD = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_UNUSABLE = re.compile(r"[\n\\]")


def render(cfg: SlurmConfig, stage: str, out: Path, settings: Sequence[str]) -> str:
    """Write the job script of a run.

    Args:
        cfg: the user's.
        stage: name of the training command.
        out: the run folder.
        settings: arguments of the command beside its configuration, which is in `out`.

    Raises:
        ConfigError: the template lacks a field or has an unknown one, or Slurm cannot write its log
            to the run folder.
    """
    if _UNUSABLE.search(str(out)):
        raise ConfigError(
            f"output_dir: got {str(out)!r}; need a path without backslashes and line breaks, in "
            "which Slurm can write a log. Try another output_dir"
        )
    fields = _fields(cfg, stage, out, settings)
    template = Path(cfg.template) if cfg.template else TEMPLATE
    text = _read(template)
    _require_fields(template, text, fields)
    return _FIELD.sub(lambda found: fields[found[1]], text)


def _fields(cfg: SlurmConfig, stage: str, out: Path, settings: Sequence[str]) -> dict[str, str]:
    quoted = {"run_folder": str(out), "script": str(out / JOB_SCRIPT), "log": str(out / JOB_LOG)}
    plain = {
        "directives": "\n".join(f"#SBATCH {line}" for line in directives(cfg, stage, out)),
        "setup": "\n".join(cfg.setup_lines),
        "command": _in_lines(_command(cfg, stage, out, settings)),
        "title": f"rlhf {stage}",
        "requeue": str(cfg.requeue).lower(),
        "nodes": str(cfg.nodes),
        "ntasks_per_node": str(cfg.tasks_per_node),
    }
    return plain | {name: shlex.quote(text) for name, text in quoted.items()}


def directives(cfg: SlurmConfig, stage: str, out: Path) -> list[str]:
    """Options of sbatch for the job of a run, one each."""
    given = {
        "job-name": cfg.job_name or f"rlhf-{stage}",
        "partition": cfg.partition,
        "account": cfg.account,
        "qos": cfg.qos,
        "time": cfg.time,
        "nodes": cfg.nodes,
        "ntasks-per-node": cfg.tasks_per_node,
        "gpus-per-node": cfg.gpus_per_node,
        "cpus-per-task": cfg.cpus_per_task,
        "mem": cfg.mem,
    }
    found = [f"--{name}={value}" for name, value in given.items() if value]
    # without `B:` the signal goes to the processes of srun and not to the shell
    found.append(f"--signal=USR1@{cfg.signal_seconds}")
    found.append("--requeue" if cfg.requeue else "--no-requeue")
    log = str(out / JOB_LOG).replace("%", "%%")
    found += [f"--chdir={_quote(str(Path.cwd()))}", f"--output={_quote(log)}"]
    return [*found, "--open-mode=append", *cfg.extra_options]


def _quote(text: str) -> str:
    """Quote the value of an `#SBATCH` line, where `#` begins a comment."""
    return text if re.fullmatch(r"[\w@%+=:,./-]+", text, re.ASCII) else shlex.quote(text)


def _command(cfg: SlurmConfig, stage: str, out: Path, settings: Sequence[str]) -> list[list[str]]:
    """The command in groups of words that stand on one line each."""
    # `block`: neighbouring ranks are on one node. `kill-on-bad-exit`: the other processes of a
    # failed one, which may wait for it without end, are stopped by Slurm.
    srun = ["srun", "--distribution=block", "--kill-on-bad-exit=1"]
    cores = [f"--cpus-per-task={cfg.cpus_per_task}"] if cfg.cpus_per_task else []
    run = [sys.executable, "-P", "-m", "rlhf_cli", stage]
    keys = [f"config={out / JOB_CONFIG}", *settings, f"output_dir={out}"]
    return [[*srun, *cores], run, *([key] for key in keys)]


def _in_lines(groups: Iterable[Sequence[str]]) -> str:
    return " \\\n    ".join(shlex.join(words) for words in groups)


def _read(template: Path) -> str:
    try:
        return template.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"launch.slurm.template: {template} cannot be read as UTF-8 text ({error})"
        ) from None


def _require_fields(template: Path, text: str, fields: dict[str, str]) -> None:
    used = set(_FIELD.findall(text))
    needed = [*NEEDED, *(["setup"] if fields["setup"] else [])]
    missing = [name for name in needed if name not in used]
    unknown = sorted(used - fields.keys())
    found = []
    if missing:
        shown = ", ".join(f"{{{{ {name} }}}}" for name in missing)
        found.append(f"launch.slurm.template: {template} lacks {shown}; see rlhf docs slurm")
    for name in unknown:
        close = nearest(name, fields)
        advice = f". Try {{{{ {close} }}}}" if close else f"; need one of {', '.join(fields)}"
        found.append(
            f"launch.slurm.template: {template} has {{{{ {name} }}}}, which is no field{advice}"
        )
    if not text.startswith("#!"):
        found.append(
            f"launch.slurm.template: {template} does not begin with #!; need the program that "
            "runs it. Try #!/bin/bash"
        )
    if found:
        raise ConfigError("\n".join(found))
