"""Disk space of a run: its checkpoints, and the model that it leaves."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_cli.commands.dry_run.steps import Steps
from rlhf_cli.memory.training import MOMENT_BYTES
from rlhf_cli.memory.weights import HeldModel

MASTER_BYTES = 4


@dataclass(frozen=True)
class DiskNeed:
    """Bytes that a run writes into its folder, and the room there.

    Attributes:
        checkpoint: one checkpoint: fp32 weights that are trained, and the optimizer's moments.
        most: checkpoints that are there at once: a new one is complete before the oldest goes.
        result: the saved model or adapter.
        base: a base that the run writes for its adapter; 0 where it lies elsewhere.
        free: bytes that are free where the run folder is or will be.
    """

    checkpoint: int
    most: int
    result: int
    base: int
    free: int

    @property
    def total(self) -> int:
        """Most bytes that are there at once."""
        return self.checkpoint * self.most + self.result + self.base

    @property
    def fits(self) -> bool:
        """Whether there is room for them."""
        return self.total <= self.free


def disk_need(
    cfg: Any, policy: HeldModel, trained: int, steps: Steps, itemsize: int, out: Path
) -> DiskNeed:
    """Compute the disk space of a run.

    Args:
        cfg: its configuration.
        policy: the trained model.
        trained: parameters that are trained, a value model's included.
        steps: of the run.
        itemsize: bytes of the compute type.
        out: the run folder, which need not exist.
    """
    saved = {"fp32": 4, "bf16": 2}.get(cfg.model.dtype, itemsize)
    whole = sum(tensor.count for tensor in policy.shape.tensors)
    makes_base = cfg.adapter.start == "merge" and bool(policy.shape.adapters)
    makes_base |= cfg.model.from_scratch and cfg.adapter.kind != "none"
    return DiskNeed(
        checkpoint=int(trained * (MASTER_BYTES + MOMENT_BYTES[cfg.train.optimizer])),
        most=min(steps.checkpoints, steps.kept + 1),
        result=(policy.adapter or whole) * saved,
        base=whole * MASTER_BYTES if makes_base else 0,
        free=shutil.disk_usage(_existing(out)).free,
    )


def _existing(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    return next(parent for parent in (path, *path.parents) if parent.is_dir())
