"""What a result depends on beside the configuration, and where a run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rlhf_cli.errors import CheckpointError
from rlhf_cli.train.checkpoint import latest_checkpoint, read_state


def check_resumable(checkpoint: Path | None, machinery: dict[str, Any]) -> dict[str, Any]:
    """The machinery of a run, which a continued one takes from its checkpoint.

    Raises:
        CheckpointError: what computes here, or from what, is not as it was there.
    """
    if checkpoint is None:
        return machinery
    stored = dict(read_state(checkpoint)["machinery"])
    torch.set_num_threads(stored["threads"])
    fixed = stored.keys() - {"threads", "micro_batch_tokens"}
    differing = [name for name in sorted(fixed) if stored[name] != machinery[name]]
    if differing:
        changes = ", ".join(f"{n}: {stored[n]} -> {machinery[n]}" for n in differing)
        raise CheckpointError(
            f"{checkpoint}: cannot be continued here, because {changes}; "
            "continue with what it began with, or give another output_dir"
        )
    return stored


def find_checkpoint(out: Path, resume: str) -> Path | None:
    """Where to continue: a path given by `resume`, else the newest in the run folder."""
    return latest_checkpoint(out) if resume in ("auto", "never") else Path(resume).expanduser()
