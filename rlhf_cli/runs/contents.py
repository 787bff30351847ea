"""What a run writes into its folder, and the removal of it before another run starts there.

All names that a run gives its files stand here, so that a fresh start takes over none of them.
"""

import shutil
from pathlib import Path

CONFIG, MANIFEST, ARTIFACT = "config.yaml", "manifest.json", "artifact.json"
METRICS, LOG, SAMPLES = "metrics.jsonl", "log.txt", "samples.jsonl"

CHECKPOINTS = "checkpoints"
MODEL = "model"
BASE = "base"
"""The base of the run's adapter, where those weights are nowhere else."""

TOKENIZER = "tokenizer"
"""A tokenizer that was trained for several processes."""

RANK_LOGS = "ranks"
TRACKERS = "trackers"

FILES = (CONFIG, ARTIFACT, METRICS, LOG, SAMPLES)
FOLDERS = (MODEL, BASE, TOKENIZER, RANK_LOGS, TRACKERS)
_PARTIAL = ".tmp"
_PARTIAL_CHECKPOINTS = ("step-*.tmp", "step-*.old")


def written_by_run(path: Path) -> list[Path]:
    """The entries of a run folder that have the names of a run's own, the manifest last.

    `checkpoints` counts where it is empty or holds interrupted writes; with anything else in it,
    only those do.
    """
    names = [*FILES, *FOLDERS, *(f"{name}{_PARTIAL}" for name in FOLDERS)]
    found = [path / name for name in names]
    found += [part for name in (*FILES, MANIFEST) for part in path.glob(f".{name}.*")]
    found += [part for glob in _PARTIAL_CHECKPOINTS for part in (path / CHECKPOINTS).glob(glob)]
    return [entry for entry in [*found, path / MANIFEST] if entry.exists() or entry.is_symlink()]


def remove(path: Path) -> list[str]:
    """Remove all that a run without a checkpoint or result left in its folder.

    The manifest goes last: a removal that is interrupted can be repeated.

    Returns:
        The names of what is left: files of the user's.

    Raises:
        OSError: something cannot be removed.
    """
    for entry in written_by_run(path):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    checkpoints = path / CHECKPOINTS
    if checkpoints.is_dir() and not any(checkpoints.iterdir()):
        checkpoints.rmdir()
    return sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
