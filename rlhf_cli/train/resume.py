"""Where a run starts, and what a continued run must have in common with its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rlhf_cli.console import logger
from rlhf_cli.context import RunContext
from rlhf_cli.data.report import DataReport
from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.errors import CheckpointError, DataError
from rlhf_cli.launch.config import LaunchConfig
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


LAUNCH = {
    "processes": 1,
    "shard": "none",
    "replicas": 1,
    "context_parallel": 1,
    "offload": "none",
}
"""What may change when a run is continued -> its value where a checkpoint does not have it."""


def run_fingerprint(
    micro_batch_tokens: int,
    ctx: RunContext,
    launch: LaunchConfig,
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
        **{name: getattr(launch, name) for name in LAUNCH},
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


def require_equal_inputs(fingerprint: dict[str, Any], ranks: Ranks) -> None:
    """Check that all ranks have the same rows and tokenizer: machines may have copies of each.

    Raises:
        DataError: on all ranks; names the first rank that differs from rank 0.
    """
    names = ("data", "held_out_data", "tokenizer")
    first, *others = ranks.all_gather_json([fingerprint[name] for name in names])
    for rank, own in enumerate(others, start=1):
        differing = [name for name, a, b in zip(names, first, own, strict=True) if a != b]
        if differing:
            raise DataError(
                f"rank {rank} has another {' and '.join(differing)} than rank 0; need the same on "
                "every machine. Copy the files again, or put them into a folder that all share"
            )


def check_resumable(checkpoint: Path | None, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Compare a run's fingerprint with its checkpoint's.

    With as many processes and the same sharding as there, micro-batches and threads are those of
    the checkpoint too, so that the run goes on bit for bit. Otherwise they are this run's own: the
    memory of a process is another, and the result is the same up to rounding.

    Returns:
        The fingerprint to run with.

    Raises:
        CheckpointError: another field differs.
    """
    if checkpoint is None:
        return fingerprint
    stored = dict(read_state(checkpoint)["machinery"])
    fixed = stored.keys() - {"threads", "micro_batch_tokens", *LAUNCH}
    differing = [name for name in sorted(fixed) if stored[name] != fingerprint[name]]
    if differing:
        changes = ", ".join(f"{n}: {stored[n]} -> {fingerprint[n]}" for n in differing)
        raise CheckpointError(
            f"{checkpoint}: cannot be continued here, because {changes}; "
            "use the same setup as at its start, or give another output_dir"
        )
    before, now = ({**LAUNCH, **_launch_of(found)} for found in (stored, fingerprint))
    if before != now:
        logger.info(
            f"continuing a run of {_describe(before)} on {_describe(now)}: the same steps and "
            "rows, with results that are equal up to rounding"
        )
        return fingerprint
    torch.set_num_threads(stored["threads"])
    return {**fingerprint, **stored}


def _launch_of(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fingerprint.items() if name in LAUNCH}


def _describe(launch: Mapping[str, Any]) -> str:
    """Number of processes, and the launch keys that are not their defaults."""
    count = launch["processes"]
    keys = [name for name in LAUNCH if name != "processes" and launch[name] != LAUNCH[name]]
    shown = ", ".join(f"launch.{name}={launch[name]}" for name in keys)
    return f"{count} process{'es' if count != 1 else ''}" + (f" ({shown})" if shown else "")


def find_checkpoint(out: Path, resume: str, ranks: Ranks) -> Path | None:
    """Checkpoint to continue from: the path in `resume`, else the newest in the run folder.

    Rank 0 looks: a shared file system may show another machine an older list.
    """
    if resume not in ("auto", "never"):
        return Path(resume).expanduser()
    found = latest_checkpoint(out) if ranks.is_main else None
    [name, *_] = ranks.all_gather_json(found and str(found))
    return Path(name) if name else None


def meter_of_rank(saved: Sequence[dict[str, list[float]]], ranks: Ranks) -> dict[str, list[float]]:
    """Sums of metrics since the last logged line with which a rank continues.

    Args:
        saved: of each rank of the checkpoint's run.
        ranks: of this run; with another number of them rank 0 takes the sums of all.
    """
    if len(saved) == ranks.world_size:
        return saved[ranks.rank]
    merged: dict[str, list[float]] = {}
    for of_rank in saved if ranks.is_main else ():
        for name, (total, count) in of_rank.items():
            before = merged.get(name, [0.0, 0.0])
            merged[name] = [before[0] + total, before[1] + count]
    return merged
