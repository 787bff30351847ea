"""Checkpoints: complete or absent, free of pickle, exact.

A folder `step-000200` holds `weights.safetensors` (fp32 masters), `optimizer.safetensors` (moments
by parameter name), `rng.safetensors`, `state.json`, and `stage.safetensors` where a stage keeps
tensors of its own. It is written under a temporary name, flushed to disk and renamed; a crash
leaves the one before. Rank 0 writes it, with the random states of all ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf_cli.distributed import SINGLE_PROCESS, Ranks
from rlhf_cli.errors import CheckpointError, first_line
from rlhf_cli.runs import lock, run_files
from rlhf_cli.runs.folder import list_checkpoints
from rlhf_cli.train.optim import MasterAdamW

FORMAT = 3
FOLDER = run_files.CHECKPOINTS
WEIGHTS = "weights.safetensors"
STAGE = "stage.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint.

    Attributes:
        step: optimizer steps done.
        optimizer: holds the fp32 masters and moments.
        state: JSON values of everything else: step source, metrics, fingerprint.
        tensors: tensors of the stage.
    """

    step: int
    optimizer: MasterAdamW
    state: dict[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def save_checkpoint(
    out: Path,
    content: Checkpoint,
    keep: int,
    ranks: Ranks = SINGLE_PROCESS,
    *,
    keep_step: int | None = None,
) -> None:
    """Write `checkpoints/step-<step>` and delete the oldest beyond `keep`.

    Args:
        out: the run folder.
        content: what is saved.
        keep: number of checkpoints to keep, this one included.
        ranks: ranks of the run; all call this together.
        keep_step: step whose checkpoint is never dropped, or None.

    Raises:
        CheckpointError: it could not be written, or another process took the folder over; the
            checkpoints before it stand.
    """
    own = read_rng_state()
    gathered = zip(
        ranks.all_gather_tensors(own.tensors), ranks.all_gather_json(own.values), strict=True
    )
    everyone = [RngState(*one) for one in gathered]

    def save() -> None:
        lock.require_owned(out)
        _save(out, content, everyone)
        for old in list_checkpoints(out)[:-keep]:
            if keep_step is None or old.name != _name(keep_step):
                _remove(old)

    ranks.run_on_main(save)


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _save(out: Path, content: Checkpoint, rng_states: list[RngState]) -> None:
    folder = out / FOLDER
    final = folder / _name(content.step)
    partial = folder / f"{_name(content.step)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        _write(partial, content, rng_states)
        _remove(final)
        partial.rename(final)
        _flush_entries(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        last = latest_checkpoint(out)
        stands = f"{last.name} still stands" if last else "there is none before it"
        raise CheckpointError(
            f"{final}: the checkpoint could not be written ({_reason(error)}); {stands}. "
            "Free disk space or choose another output_dir, then give the same command again"
        ) from error


def latest_checkpoint(out: Path) -> Path | None:
    """The newest complete checkpoint in a run folder, or None."""
    found = list_checkpoints(out)
    return found[-1] if found else None


def load_weights(out: Path, step: int) -> dict[str, Tensor]:
    """Load the fp32 masters of a step, and nothing else.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
    """
    path = out / FOLDER / _name(step)
    hashes = read_state(path)["sha256"]
    try:
        _verify(path, {WEIGHTS: hashes[WEIGHTS]})
        return dict(load_file(path / WEIGHTS))
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise _unusable(path, error) from error


def load_checkpoint(
    path: Path, optimizer: MasterAdamW, tensors: Mapping[str, Tensor], rank: int = 0
) -> dict[str, Any]:
    """Restore masters, moments, the stage's tensors and this rank's random number generators.

    Returns:
        The saved `state`, with `step`.

    Raises:
        CheckpointError: a file is missing, damaged, or of another model.
    """
    state = read_state(path)
    try:
        _verify(path, state["sha256"])
        optimizer.load(load_file(path / WEIGHTS), load_file(path / "optimizer.safetensors"))
        stored = load_file(path / STAGE) if tensors else {}
        for name, tensor in tensors.items():
            tensor.copy_(stored[name])
        restore_rng_state(_rng_state_of(rank, path, state["rng"]))
    except (OSError, SafetensorError, ValueError, LookupError, RuntimeError) as error:
        raise _unusable(path, error) from error
    return state


def read_state(path: Path) -> dict[str, Any]:
    """Read the JSON part of a checkpoint.

    Raises:
        CheckpointError: it is missing, damaged or of another version.
    """
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            raise ValueError(f"format {state['format']}, not {FORMAT}")
    except (OSError, ValueError, KeyError) as error:
        raise _unusable(path, error) from error
    return state


def _unusable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path}: cannot be continued from ({_reason(error)}). Remove this folder to continue "
        "from the checkpoint before it, or give another output_dir"
    )


def _write(folder: Path, content: Checkpoint, rng_states: list[RngState]) -> None:
    parts: dict[str, dict[str, Tensor]] = {
        WEIGHTS: content.optimizer.masters,
        "optimizer.safetensors": content.optimizer.moments(),
        "rng.safetensors": {
            f"{rank}/{name}": tensor
            for rank, of_rank in enumerate(rng_states)
            for name, tensor in of_rank.tensors.items()
        },
    }
    if content.tensors:
        parts[STAGE] = dict(content.tensors)
    for name, part in parts.items():
        save_file({key: value.contiguous() for key, value in part.items()}, folder / name)
    document = {
        **content.state,
        "format": FORMAT,
        "step": content.step,
        "rng": [of_rank.values for of_rank in rng_states],
        "sha256": {name: _sha256(folder / name) for name in parts},
    }
    (folder / "state.json").write_text(json.dumps(document), encoding="utf-8")
    flush_folder(folder)


def _rng_state_of(rank: int, path: Path, values: list[dict[str, Any]]) -> RngState:
    own, stored = f"{rank}/", load_file(path / "rng.safetensors")
    tensors = {n.removeprefix(own): t for n, t in stored.items() if n.startswith(own)}
    return RngState(tensors, values[rank])


def _verify(path: Path, hashes: dict[str, str]) -> None:
    for name, expected in hashes.items():
        if _sha256(path / name) != expected:
            raise ValueError(f"{name} is damaged: its content is not what was written")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(folder: Path) -> None:
    """Delete a checkpoint, renamed first: a half-deleted one must not look complete."""
    if folder.exists():
        doomed = folder.with_suffix(".old")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def flush_folder(folder: Path) -> None:
    """Flush a folder's files and directory entries to disk."""
    for entry in folder.iterdir():
        if entry.is_dir():
            flush_folder(entry)
        else:
            with entry.open("rb") as handle:
                os.fsync(handle.fileno())
    _flush_entries(folder)


def _flush_entries(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return first_line(error)


@dataclass(frozen=True)
class RngState:
    """State of the random number generators of one process.

    Attributes:
        tensors: torch's states, by device type.
        values: states of `random` and NumPy, as JSON values.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def read_rng_state() -> RngState:
    """Random states of this process."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    name, keys, *rest = np.random.get_state(legacy=True)
    numpy_state = [name, np.asarray(keys).tolist(), *rest]
    return RngState(tensors, {"python": random.getstate(), "numpy": numpy_state})


def restore_rng_state(state: RngState) -> None:
    """Restore the random states of this process."""
    torch.set_rng_state(state.tensors["cpu"])
    if torch.cuda.is_available() and "cuda" in state.tensors:
        torch.cuda.set_rng_state(state.tensors["cuda"])
    version, internal, gauss = state.values["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state.values["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
