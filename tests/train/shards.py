"""Optimizers over rows of a few parameters, as the ranks of a sharded run hold them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.distributed.shards import ShardLayout
from rlhf_cli.train.checkpoint import load_checkpoint
from rlhf_cli.train.checkpoint_writer import Checkpoint, CheckpointWriter
from rlhf_cli.train.config import TrainConfig
from rlhf_cli.train.optim import MasterAdamW
from tests.thread_ranks import on_ranks

SHAPES = {"embedding": (40, 150), "matrix": (13, 7), "bias": (5,), "scale": ()}
"""The moments of the first are kept in 8 bits where a rank holds 28 rows or more."""

SHARDED = {name: shape for name, shape in SHAPES.items() if shape}

Cuts = dict[str, list[int]]
"""Parameter -> first row of each rank's part, and the end."""

LR = 0.01


def whole_tensors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(shape, generator=generator) for n, shape in SHAPES.items()}


def even_cuts(count: int) -> Cuts:
    """As `torch.chunk` divides: the last parts are smaller, or empty."""
    found = {}
    for name, (count_of_rows, *_) in SHARDED.items():
        size = -(-count_of_rows // count)
        found[name] = [min(count_of_rows, rank * size) for rank in range(count + 1)]
    return found


def layouts_of(cuts: Cuts, rank: int, *, writes: bool = True) -> dict[str, ShardLayout]:
    """A rank's rows; scalars are whole on all."""
    found = {"scale": ShardLayout((), 0, 1, writes and rank == 0)}
    for name, points in cuts.items():
        start, end = points[rank : rank + 2]
        found[name] = ShardLayout(SHAPES[name], start, end - start, writes)
    return found


def whole_layouts(*, writes: bool = True) -> dict[str, ShardLayout]:
    return layouts_of(even_cuts(1), 0, writes=writes)


def rows(tensor: Tensor, layout: ShardLayout) -> Tensor:
    """The rows of a whole tensor that a rank holds."""
    return tensor[layout.start : layout.start + layout.rows] if layout.shape else tensor


def make_optimizer(
    layouts: dict[str, ShardLayout], kind: Any = "adamw", steps: int = 0, seed: int = 0
) -> MasterAdamW:
    """An optimizer over rows, after some steps.

    Vector and scalar code round a last bit differently, so the rows of AdamW are cut from those of
    an optimizer over whole tensors. Those of 8-bit AdamW are stepped as they are: its blocks begin
    with the rows.
    """
    optimizer = _new_optimizer(layouts, kind, seed)
    stepped = _new_optimizer(whole_layouts(), kind, seed) if kind == "adamw" else optimizer
    for step in range(steps):
        take_step(stepped, seed + 1 + step)
    if stepped is not optimizer:
        masters = {n: rows(t, layouts[n]) for n, t in stepped.masters.items()}
        optimizer.load(masters, _rows_of_moments(stepped, layouts))
    return optimizer


def _new_optimizer(layouts: dict[str, ShardLayout], kind: Any, seed: int) -> MasterAdamW:
    masters = {n: rows(t, layouts[n]).clone() for n, t in whole_tensors(seed).items()}
    module = nn.ParameterDict({n: nn.Parameter(t) for n, t in masters.items()})
    optimizer = MasterAdamW(module, TrainConfig(optimizer=kind), torch.float32)
    optimizer.layouts = layouts
    return optimizer


def _rows_of_moments(
    optimizer: MasterAdamW, layouts: dict[str, ShardLayout]
) -> Iterator[tuple[str, Tensor]]:
    for key, value in optimizer.moments().items():
        name, _, slot = key.partition("/")
        if layouts[name].rows:
            yield key, (value if slot == "step" else rows(value, layouts[name])).clone()


def take_step(optimizer: MasterAdamW, seed: int) -> None:
    for name, grad in whole_tensors(seed).items():
        optimizer.params[name].grad = rows(grad, optimizer.layouts[name]).clone()
    optimizer.step(LR)


def values(optimizer: MasterAdamW) -> dict[str, Tensor]:
    return {**optimizer.masters, **optimizer.moments()}


def save(out: Path, every: Sequence[dict[str, ShardLayout]], step: int = 2, **options: Any) -> Path:
    """Let as many ranks as there are layouts save a checkpoint after `step` steps."""

    def of_rank(ranks: Ranks) -> None:
        optimizer = make_optimizer(every[ranks.rank], steps=step, **options)
        state = {"meter": ranks.all_gather_json({}), "machinery": {}}
        CheckpointWriter(out, 9, ranks).save(Checkpoint(step, optimizer, state))

    on_ranks(len(every), of_rank)
    return out / "checkpoints" / f"step-{step:06d}"


def load(
    path: Path, every: Sequence[dict[str, ShardLayout]], kind: Any = "adamw"
) -> list[MasterAdamW]:
    """Load a checkpoint on as many ranks as there are layouts."""

    def of_rank(ranks: Ranks) -> MasterAdamW:
        optimizer = make_optimizer(every[ranks.rank], kind, seed=99)
        load_checkpoint(path, optimizer, {}, ranks)
        return optimizer

    return on_ranks(len(every), of_rank)
