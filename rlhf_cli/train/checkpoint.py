"""Checkpoints: complete or absent, free of pickle, exact.

A folder `step-000200` holds `weights.safetensors` (fp32 masters), `optimizer.safetensors` (moments
by parameter name), `rng.safetensors`, `state.json`, and `stage.safetensors` where a stage keeps
tensors of its own. It is written beside its name, flushed to disk and renamed; a crash leaves the
one before. Rank 0 writes it, with the generators of all ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf_cli.distributed import ALONE, Ranks
from rlhf_cli.errors import CheckpointError, first_line
from rlhf_cli.runs import contents, lock
from rlhf_cli.runs.folder import checkpoints
from rlhf_cli.train.optim import MasterAdamW

FORMAT = 3
FOLDER = contents.CHECKPOINTS
WEIGHTS = "weights.safetensors"
STAGE = "stage.safetensors"


def save_checkpoint(
    out: Path,
    step: int,
    optimizer: MasterAdamW,
    state: dict[str, Any],
    keep: int,
    ranks: Ranks = ALONE,
    *,
    tensors: Mapping[str, Tensor] | None = None,
    spared: int | None = None,
) -> None:
    """Write `checkpoints/step-<step>` and drop the oldest beyond `keep`.

    Args:
        out: the run folder.
        step: optimizer steps done.
        optimizer: its masters and moments are saved.
        state: JSON values of everything else: source, metrics, machinery.
        keep: checkpoints to keep, this one included.
        ranks: all call this together.
        tensors: of the stage's own.
        spared: a step whose checkpoint is kept in any case; none is by default.

    Raises:
        CheckpointError: it could not be written, or another process took the folder over; the
            checkpoints before it stand.
    """
    own = read_rng_state()
    gathered = zip(ranks.gather_tensors(own.tensors), ranks.gather(own.values), strict=True)
    everyone = [RngState(*one) for one in gathered]

    def save() -> None:
        lock.require_owned(out)
        _save(out, step, optimizer, state, everyone, tensors or {})
        for old in checkpoints(out)[:-keep]:
            if spared is None or old.name != _name(spared):
                _remove(old)

    ranks.on_main(save)


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _save(
    out: Path,
    step: int,
    optimizer: MasterAdamW,
    state: dict[str, Any],
    generators: list[RngState],
    tensors: Mapping[str, Tensor],
) -> None:
    folder = out / FOLDER
    final = folder / _name(step)
    partial = folder / f"{_name(step)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        _write(partial, step, optimizer, state, generators, tensors)
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
    """The newest complete checkpoint of a run folder."""
    found = checkpoints(out)
    return found[-1] if found else None


def load_weights(out: Path, step: int) -> dict[str, Tensor]:
    """The fp32 masters alone, as they were after a step.

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
    """Put masters, moments, the stage's own tensors and a rank's random generators back.

    Returns:
        What `state` was at saving, with `step`.

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
        restore_rng_state(_generators_of(rank, path, state["rng"]))
    except (OSError, SafetensorError, ValueError, LookupError, RuntimeError) as error:
        raise _unusable(path, error) from error
    return state


def read_state(path: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint.

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


def _write(
    folder: Path,
    step: int,
    optimizer: MasterAdamW,
    state: dict[str, Any],
    generators: list[RngState],
    tensors: Mapping[str, Tensor],
) -> None:
    parts: dict[str, dict[str, Tensor]] = {
        WEIGHTS: optimizer.masters,
        "optimizer.safetensors": optimizer.moments(),
        "rng.safetensors": {
            f"{rank}/{name}": tensor
            for rank, of_rank in enumerate(generators)
            for name, tensor in of_rank.tensors.items()
        },
    }
    if tensors:
        parts[STAGE] = dict(tensors)
    for name, content in parts.items():
        save_file({key: value.contiguous() for key, value in content.items()}, folder / name)
    document = {
        **state,
        "format": FORMAT,
        "step": step,
        "rng": [of_rank.values for of_rank in generators],
        "sha256": {name: _sha256(folder / name) for name in parts},
    }
    (folder / "state.json").write_text(json.dumps(document), encoding="utf-8")
    flush_folder(folder)


def _generators_of(rank: int, path: Path, values: list[dict[str, Any]]) -> RngState:
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
    """Delete a checkpoint; one that is deleted by half must not look complete."""
    if folder.exists():
        doomed = folder.with_suffix(".old")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def flush_folder(folder: Path) -> None:
    """Force all that is in a folder, and the names, to disk."""
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
    """Where the generators of one process stand.

    Attributes:
        tensors: torch's, by device type.
        values: those of `random` and NumPy, as JSON values.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def read_rng_state() -> RngState:
    """Those of this process."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    name, keys, *rest = np.random.get_state(legacy=True)
    numpy_state = [name, np.asarray(keys).tolist(), *rest]
    return RngState(tensors, {"python": random.getstate(), "numpy": numpy_state})


def restore_rng_state(generators: RngState) -> None:
    """Put this process's generators where they were."""
    torch.set_rng_state(generators.tensors["cpu"])
    if torch.cuda.is_available() and "cuda" in generators.tensors:
        torch.cuda.set_rng_state(generators.tensors["cuda"])
    version, internal, gauss = generators.values["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = generators.values["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
