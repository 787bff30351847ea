"""Where a run starts, and what a continued run must have in common with its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rlhf_cli.context import RunContext
from rlhf_cli.data.report import DataReport
from rlhf_cli.errors import CheckpointError
from rlhf_cli.models.liger import liger_layers
from rlhf_cli.models.tokenizer import tokenizer_hash
from rlhf_cli.models.wrapper import ModelWrapper
from rlhf_cli.train.checkpoint import latest_checkpoint, read_state


@dataclass(frozen=True)
class StartPoint:
    """Where a run starts, and what it computes with.

    Attributes:
        checkpoint: folder to continue from; None starts from the loaded weights.
        fingerprint: what the result depends on beside the configuration; see `run_fingerprint`.
    """

    checkpoint: Path | None = None
    fingerprint: dict[str, Any] = field(default_factory=dict)


def run_fingerprint(
    micro_batch_tokens: int,
    ctx: RunContext,
    model: ModelWrapper,
    tokenizer: Any,
    report: DataReport,
    held_out_report: DataReport | None,
) -> dict[str, Any]:
    """Everything beside the configuration on which a run's result depends, to the last bit."""
    return {
        "micro_batch_tokens": min(
            ctx.ranks.all_gather_json(micro_batch_tokens)  # GPUs of one run may differ
        ),
        "processes": ctx.ranks.world_size,
        "context_parallel": ctx.ranks.context.world_size,
        "threads": torch.get_num_threads(),
        "attention": model.model.config._attn_implementation,
        "logprobs": model.implementation.name,
        "layers": liger_layers(model.model) or "own",
        "compute": ctx.compute_name,
        "tokenizer": tokenizer_hash(tokenizer),
        "data": report.sha256,
        "held_out_data": held_out_report.sha256 if held_out_report else "",
    }


def check_resumable(checkpoint: Path | None, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Compare a run's fingerprint with its checkpoint's, and use as many threads as there.

    Returns:
        The fingerprint to run with: the checkpoint's where there is one, because micro-batches and
        threads must stay as they were.

    Raises:
        CheckpointError: another field differs.
    """
    if checkpoint is None:
        return fingerprint
    stored = dict(read_state(checkpoint)["machinery"])
    torch.set_num_threads(stored["threads"])
    fixed = stored.keys() - {"threads", "micro_batch_tokens"}
    differing = [name for name in sorted(fixed) if stored[name] != fingerprint[name]]
    if differing:
        changes = ", ".join(f"{n}: {stored[n]} -> {fingerprint[n]}" for n in differing)
        raise CheckpointError(
            f"{checkpoint}: cannot be continued here, because {changes}; "
            "use the same setup as at its start, or give another output_dir"
        )
    return stored


def find_checkpoint(out: Path, resume: str) -> Path | None:
    """Checkpoint to continue from: the path in `resume`, else the newest in the run folder."""
    return latest_checkpoint(out) if resume in ("auto", "never") else Path(resume).expanduser()
