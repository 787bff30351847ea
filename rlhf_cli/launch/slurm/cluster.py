"""Slurm's commands: submit a job, find those of a run folder; their errors in one line."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_cli.config.suggest import nearest
from rlhf_cli.errors import ConfigError, RlhfError
from rlhf_cli.launch.slurm.config import SlurmConfig

TIMEOUT_SECONDS = 120.0
"""Slurm's commands retry for up to a minute where a daemon does not answer."""

_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")


@dataclass(frozen=True)
class Job:
    """A job in the queue.

    Attributes:
        id: its number.
        state: as `RUNNING` or `PENDING`.
    """

    id: str
    state: str


def require_slurm() -> None:
    """Refuse a machine without Slurm's commands.

    Raises:
        ConfigError: there is no `sbatch`.
    """
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "launch: got slurm, but there is no sbatch in PATH; need a machine from which jobs of "
            "the cluster are submitted. Try launch=local, or --dry-run to write job.sbatch"
        )


def find_job(script: Path) -> Job | None:
    """Find the job of a script in the user's queue; None if there is none or Slurm is silent."""
    listed = _run(["squeue", "--me", "--noheader", "--format=%i|%T|%o"])
    for line in listed.stdout.splitlines() if listed.returncode == 0 else []:
        parts = line.split("|", 2)  # fewer in a message of squeue
        if len(parts) == 3 and parts[2].strip() == str(script):
            return Job(parts[0], parts[1])
    return None


def submit(script: Path, cfg: SlurmConfig) -> str:
    """Submit a job script and return the number of the job.

    Raises:
        ConfigError: Slurm refuses the job because of a key.
        RlhfError: Slurm refuses it for another reason, or does not answer.
    """
    done = _run(["sbatch", "--parsable", str(script)])
    number = done.stdout.strip().partition(";")[0]
    if done.returncode == 0 and number:
        return number
    raise _refusal(done.stderr, cfg)


def node_address(node: str) -> str:
    """Address by which Slurm reaches a node; empty if Slurm does not say."""
    shown = _run(["scontrol", "--oneliner", "show", "node", node]).stdout
    found = re.search(r"\bNodeAddr=(\S+)", shown)
    return found[1] if found else ""


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of Slurm without the variables of a job that this process may be part of."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k in _KEPT}
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False, env=own
        )
    except subprocess.TimeoutExpired:
        text = f"does not answer within {TIMEOUT_SECONDS:.0f} s"
        return subprocess.CompletedProcess(command, 1, "", f"{command[0]}: error: {text}")
    except OSError as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def _refusal(stderr: str, cfg: SlurmConfig) -> RlhfError:
    """Convert what sbatch writes to an error of one line, which names the key if there is one."""
    lines = [re.sub(r"^sbatch: (error|fatal): ", "", line) for line in stderr.splitlines()]
    reason = "; ".join(dict.fromkeys(filter(None, map(str.strip, lines)))) or "no reason given"
    low = reason.lower()
    if "munge" in low:
        return RlhfError(
            "Slurm: munge, which authenticates its users, does not run on this machine "
            f"({reason}). Try sudo systemctl start munge, or another machine of the cluster"
        )
    if "partition" in low and "account" not in low:
        return ConfigError(_no_partition(cfg, reason))
    for word, key in _KEYS.items():
        if word in low:
            value = getattr(cfg, key) or "nothing"
            advice = ". Try launch.slurm.gpus_per_node=0 for CPUs" if "gpus" in key else ""
            return ConfigError(f"launch.slurm.{key}: got {value}; Slurm says: {reason}{advice}")
    return RlhfError(f"Slurm refuses the job: {reason}")


_KEYS = {
    "account": "account",
    "qos": "qos",
    "time limit": "time",
    "--time": "time",
    "gres": "gpus_per_node",
    "gpu": "gpus_per_node",
    "memory": "mem",
    "node count": "nodes",
}
"""Word of Slurm's message -> key of `launch.slurm` that it is about."""


def _no_partition(cfg: SlurmConfig, reason: str) -> str:
    listed = _run(["sinfo", "--noheader", "--format=%R"]).stdout.split()
    names = list(dict.fromkeys(listed))
    if not names or cfg.partition in names:
        return f"launch.slurm.partition: got {cfg.partition or 'nothing'}; Slurm says: {reason}"
    best = nearest(cfg.partition, names) or names[0]
    return (
        f"launch.slurm.partition: got {cfg.partition or 'nothing'}; need one of the cluster's, "
        f"{', '.join(names)}. Try launch.slurm.partition={best}"
    )
