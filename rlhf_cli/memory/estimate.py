"""Estimate of the memory of a command, by phase and part, before anything is loaded."""

from typing import Any

from rlhf_cli.memory import inference, training
from rlhf_cli.memory.device import Device
from rlhf_cli.memory.parts import Estimate as Estimate
from rlhf_cli.memory.parts import Rows as Rows
from rlhf_cli.memory.parts import Settings


def estimate_memory(
    command: str,
    cfg: Any,
    rows: Rows,
    device: Device,
    *,
    processes: int = 1,
    micro_batch_tokens: int = 0,
) -> Estimate:
    """Estimate the memory of a command, per process.

    Args:
        command: a training stage, `generate` or `evaluate`.
        cfg: its checked config.
        rows: of its data.
        device: that it would run on.
        processes: of the run; on a CPU they share its memory.
        micro_batch_tokens: tokens of a pass; 0 takes those of the config, or the most that fit.

    Raises:
        ConfigError: a model is not here, or its files do not describe one.
    """
    settings = Settings(command, cfg, rows, device, processes)
    if command in ("generate", "evaluate"):
        return inference.estimate(settings)
    return training.estimate(settings, micro_batch_tokens)
