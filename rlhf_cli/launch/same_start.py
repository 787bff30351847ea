"""Compare what the machines of a run start with: versions, command, data and models.

One rank of each machine answers; the others of it see the same. Files are compared by name, size
and evenly spaced parts of their bytes, which takes moments for any size; that all tokens are the
same is checked when they are loaded.
"""

from __future__ import annotations

import hashlib
import json
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_cli.config.rank_env import RankEnv
from rlhf_cli.errors import ConfigError, RankFailed
from rlhf_cli.launch.worker import Task
from rlhf_cli.resources import PACKAGE
from rlhf_cli.runs import inputs, manifest
from rlhf_cli.runs.run_files import RANK_LOGS, hash_name_and_size, hash_samples

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

KEY, VERDICT = "rlhf/start/", "rlhf/start-verdict"

SAMPLED_FILES = 64
"""Files of one key whose bytes are sampled, evenly spaced; of the others name and size count."""

Facts = dict[str, str]
"""What a machine starts with, by name; `machine` is its host name."""


def compare_starts(store: Store, own: RankEnv, task: Task) -> None:
    """Compare the machines of a run; all ranks call this before anything is loaded.

    Raises:
        ConfigError: on rank 0, one line for each machine that differs from its own.
        RankFailed: on the other ranks.
    """
    if own.is_on_one_machine:
        return
    facts = start_facts(task) if own.local_rank == 0 else {}
    store.set(f"{KEY}{own.rank}", json.dumps(facts))
    if own.rank == 0:
        keys = [f"{KEY}{rank}" for rank in range(own.world_size)]
        every = [json.loads(text) for text in store.multi_get(keys)]
        problems = "\n".join(find_differences(every))
        store.set(VERDICT, problems)
        if problems:
            raise ConfigError(problems)
    elif store.get(VERDICT):
        raise RankFailed("this machine, or another one, differs from that of rank 0; see its error")


def start_facts(task: Task) -> Facts:
    """Describe what this machine starts with."""
    files = inputs.list_input_files(task.tree, task.command.config)
    shared = (Path(task.out) / RANK_LOGS).is_dir()
    return {
        "machine": socket.gethostname(),
        "command": " ".join(sys.argv[1:]),
        **manifest.versions(),
        "code of rlhf-cli": _hash_code(),
        "output_dir": "the run folder" if shared else "no such folder",
        **{key: hash_files(found) for key, found in files.items()},
    }


def find_differences(every: list[Facts]) -> list[str]:
    """One line for each machine that differs from that of rank 0.

    Args:
        every: facts by rank; empty for ranks whose machine has answered already.
    """
    first = every[0]
    lines = []
    for rank, facts in enumerate(every):
        differing = [name for name in first if name != "machine" and facts.get(name) != first[name]]
        if facts and differing:
            what = "; ".join(_describe(name, facts.get(name), first[name]) for name in differing)
            lines.append(
                f"rank {rank} on {facts['machine']} does not start as rank 0 on "
                f"{first['machine']}: {what}. {_advice(differing)}"
            )
    return lines


def _describe(name: str, here: str | None, there: str) -> str:
    if _is_hash(there) or _is_hash(here or ""):
        return f"{name}: {'other content' if here and _is_hash(here) else here or 'not there'}"
    return f"{name}: {here or 'not there'}, not {there}"


def _advice(differing: list[str]) -> str:
    if "output_dir" in differing:
        return "Give an output_dir that all machines share"
    if "command" in differing:
        return "Give every machine the same command"
    if any("." in name for name in differing):
        return "Give files that all machines share, or the same copy on each"
    return "Install the same versions on every machine"


def hash_files(files: list[Path]) -> str:
    """Hash names, sizes and parts of the bytes of files; text in place of a hash for none."""
    if not files:
        return "no such file"
    digest = hashlib.sha256()
    for file in files:
        hash_name_and_size(digest, file)
    for file in files[:: max(1, len(files) // SAMPLED_FILES)]:
        hash_samples(digest, file)
    return digest.hexdigest()


def _is_hash(text: str) -> bool:
    return len(text) == 64 and not text.strip("0123456789abcdef")


def _hash_code() -> str:
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{file.relative_to(PACKAGE).as_posix()}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()
