"""Checkpoints: complete or absent, free of pickle, exact, and for any number of processes.

A folder `step-000200` holds `weights.safetensors` (fp32 masters), `optimizer.safetensors` (moments
by parameter name), `stage.safetensors` where a stage keeps tensors of its own, `rng.safetensors`
and `state.json`. Under sharding each rank writes the rows that it holds, as in
`weights-00002-of-00004.safetensors`. `index.json` says which rows lie in which file. A run may be
continued by another number of processes, and with another sharding: each rank reads the rows that
it then holds.

This module reads checkpoints; `checkpoint_writer` writes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rlhf_cli.data.report import pluralize
from rlhf_cli.distributed.ranks import SINGLE_PROCESS, Ranks
from rlhf_cli.distributed.shards import ShardLayout, whole
from rlhf_cli.errors import CheckpointError, first_line
from rlhf_cli.runs import run_files
from rlhf_cli.runs.folder import list_checkpoints
from rlhf_cli.train.checkpoint_files import CheckpointReader, flush_entries, flush_file
from rlhf_cli.train.checkpoint_index import (
    FORMAT,
    RNG,
    STAGE,
    STATE,
    WEIGHTS,
    Index,
    count_rows,
    read_index,
    require_format,
    require_hashes,
)
from rlhf_cli.train.optim import MasterAdamW
from rlhf_cli.train.rng_state import RngState, restore_rng_state, state_of_rank
from rlhf_cli.train.stored_moments import read_moments

FOLDER = run_files.CHECKPOINTS

_DAMAGES = (OSError, SafetensorError, ValueError, LookupError, RuntimeError, TypeError)
"""What reading a damaged checkpoint raises."""


def checkpoint_name(step: int) -> str:
    """Name of the folder of a step's checkpoint."""
    return f"step-{step:06d}"


def latest_checkpoint(out: Path) -> Path | None:
    """The newest complete checkpoint in a run folder, or None."""
    found = list_checkpoints(out)
    return found[-1] if found else None


def has_checkpoint(out: Path, step: int) -> bool:
    """Whether the newest complete checkpoint in a run folder is that of a step."""
    latest = latest_checkpoint(out)
    return latest is not None and latest.name == checkpoint_name(step)


def load_weights(
    out: Path,
    step: int,
    layouts: Mapping[str, ShardLayout] | None = None,
    ranks: Ranks = SINGLE_PROCESS,
) -> dict[str, Tensor]:
    """Load the fp32 masters of a step, and nothing else.

    Args:
        out: the run folder.
        step: of the checkpoint.
        layouts: rows that this rank takes of each parameter; by default all rows of all.
        ranks: ranks of the run; all call this together.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
    """
    path = out / FOLDER / checkpoint_name(step)
    read_state(path)
    try:
        index = read_index(path)
        _verify(path, index, index.files_of(WEIGHTS), ranks)
        layouts = layouts or {n: _all_rows(shape) for n, shape in index.shapes.items()}
        with CheckpointReader(path, index) as reader:
            return dict(_Rows(reader, WEIGHTS, layouts).items())
    except _DAMAGES as error:
        raise unusable(path, error) from error


def _all_rows(shape: tuple[int, ...]) -> ShardLayout:
    return ShardLayout(shape, 0, count_rows(shape))


def load_checkpoint(
    path: Path,
    optimizer: MasterAdamW,
    tensors: Mapping[str, Tensor],
    ranks: Ranks = SINGLE_PROCESS,
    *,
    layouts: Mapping[str, ShardLayout] | None = None,
) -> dict[str, Any]:
    """Restore masters, moments, the stage's tensors and this rank's random number generators.

    Args:
        path: the checkpoint.
        optimizer: gets this rank's rows of masters and moments, as its layouts say.
        tensors: of the stage; filled in place.
        ranks: ranks of the run, whose number may differ from that of the checkpoint's run; all
            call this together, and each checks a part of the files.
        layouts: of sharded `tensors`; the others are whole.

    Returns:
        The saved `state`, with `step`.

    Raises:
        CheckpointError: a file is missing, damaged, or of another model.
    """
    state = read_state(path)
    layouts = {name: (layouts or {}).get(name, whole(tensor)) for name, tensor in tensors.items()}
    try:
        index = read_index(path)
        require_same_tensors(path, index, WEIGHTS, optimizer.layouts)
        if tensors:
            require_same_tensors(path, index, STAGE, layouts)
        _verify(path, index, sorted(index.sha256), ranks)
        with CheckpointReader(path, index) as reader:
            weights = _Rows(reader, WEIGHTS, optimizer.layouts)
            moments = read_moments(reader, optimizer.layouts, optimizer.eight_bit_from)
            optimizer.load(weights, moments)
            stored = _Rows(reader, STAGE, layouts)
            for name, tensor in tensors.items():
                tensor.copy_(stored[name])
        restore_rng_state(state_of_rank(_rng_states(path, state["rng"]), ranks.rank))
    except _DAMAGES as error:
        raise unusable(path, error) from error
    return state


def read_state(path: Path) -> dict[str, Any]:
    """Read the JSON part of a checkpoint.

    Raises:
        CheckpointError: it is missing, damaged or of another version.
    """
    try:
        state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
        require_format(state)
        if state["format"] == FORMAT:
            require_hashes(path, read_index(path).sha256, [STATE])
    except _DAMAGES as error:
        raise unusable(path, error) from error
    return state


def require_same_tensors(
    path: Path, index: Index, group: str, layouts: Mapping[str, ShardLayout]
) -> None:
    """Refuse a checkpoint of another model.

    Raises:
        CheckpointError: names or shapes of the tensors differ.
    """
    stored = {name: entry.shape for name, entry in index.tensors[group].items()}
    now = {name: layout.shape for name, layout in layouts.items()}
    differing = [name for name in sorted({**stored, **now}) if stored.get(name) != now.get(name)]
    if not differing:
        return
    what = pluralize(len(differing), "parameter" if group == WEIGHTS else "tensor")
    first = differing[0]
    raise CheckpointError(
        f"{path}: is of another model: {what} of another name or shape (it has {len(stored)}, "
        f"this run {len(now)}), first {first}: {_shape(stored.get(first))} there, "
        f"{_shape(now.get(first))} here. Use the model and adapter that the run had, or give "
        "another output_dir"
    )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))


class _Rows(Mapping[str, Tensor]):
    """This rank's rows of the tensors of a group, each read when it is asked for."""

    def __init__(
        self, reader: CheckpointReader, group: str, layouts: Mapping[str, ShardLayout]
    ) -> None:
        self.reader, self.group, self.layouts = reader, group, layouts

    def __getitem__(self, name: str) -> Tensor:
        layout = self.layouts[name]
        return self.reader.rows(self.group, name, layout.start, layout.rows)

    def __iter__(self) -> Any:
        return iter(self.layouts)

    def __len__(self) -> int:
        return len(self.layouts)


def _verify(path: Path, index: Index, names: Sequence[str], ranks: Ranks) -> None:
    """Check files against their hashes, each on one rank.

    Raises:
        ValueError: one is missing or damaged; on all ranks.
    """
    found = ""
    try:
        require_hashes(path, index.sha256, names[ranks.rank :: ranks.world_size])
    except (OSError, ValueError) as error:
        found = reason(error)
    if problem := next(filter(None, ranks.all_gather_json(found)), ""):
        raise ValueError(problem)


def _rng_states(path: Path, values: Sequence[dict[str, Any]]) -> list[RngState]:
    states = [RngState({}, of_rank) for of_rank in values]
    for name, tensor in load_file(path / RNG).items():
        rank, _, device = name.partition("/")
        states[int(rank)].tensors[device] = tensor
    return states


def unusable(path: Path, error: Exception) -> CheckpointError:
    """Build the error for a checkpoint that cannot be read."""
    if isinstance(error, CheckpointError):
        return error
    return CheckpointError(
        f"{path}: cannot be continued from ({reason(error)}). Remove this folder to continue "
        "from the checkpoint before it, or give another output_dir"
    )


def flush_folder(folder: Path) -> None:
    """Flush a folder's files and directory entries to disk."""
    for entry in folder.iterdir():
        if entry.is_dir():
            flush_folder(entry)
        else:
            flush_file(entry)
    flush_entries(folder)


def reason(error: Exception) -> str:
    """Why a file could not be written or read, in one line."""
    if isinstance(error, OSError) and error.strerror:
        name = f": {Path(error.filename).name}" if error.filename else ""
        return error.strerror.lower() + name
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return first_line(error)
