"""What a run may take: micro-batches by the memory model, and the refusal of what cannot fit."""

import os
from typing import Any

from rlhf_cli.errors import ConfigError, OutOfMemory
from rlhf_cli.memory.advice import cheapest_overrides
from rlhf_cli.memory.device import Device, find_device, machine_memory
from rlhf_cli.memory.estimate import Estimate, Rows, estimate_memory
from rlhf_cli.memory.out_of_memory import advice_lines
from rlhf_cli.memory.parts import Settings
from rlhf_cli.memory.table import format_bytes, format_estimate
from rlhf_cli.memory.training import LEAST_TOKENS, MOST_TOKENS, fit_tokens
from rlhf_cli.registry import COMMANDS

Chosen = tuple[int, str]
"""Tokens of a micro-batch, and the limit that decided."""


def command_of(cfg: Any) -> str:
    """Name of the command that a config belongs to."""
    return next(name for name, command in COMMANDS.items() if type(cfg) is command.config)


def choose_tokens(cfg: Any, rows: Rows, device: Device, processes: int) -> Chosen:
    """Choose the tokens of a pass of a training stage, and say what decided.

    Args:
        cfg: of the stage.
        rows: of its training data.
        device: that it runs on.
        processes: of the run.

    Raises:
        OutOfMemory: not even the smallest pass fits the device.
    """
    if cfg.train.micro_batch_tokens:
        return cfg.train.micro_batch_tokens, "train.micro_batch_tokens"
    most = MOST_TOKENS[device.kind]
    try:
        tokens, found = fit_tokens(Settings(command_of(cfg), cfg, rows, device, processes))
    except ConfigError as error:  # a model that transformers loads and we cannot count
        return most, f"memory unknown: {error}"
    require_fit(cfg, rows, device, found, processes)
    phase, size = found.peak
    used = f"{format_bytes(size)} of {format_bytes(device.total_bytes)} at the peak, {phase}"
    if tokens == most:
        return tokens, f"larger is not faster; memory {used}"
    return tokens, f"bounded by memory: {used}"


def require_fit(cfg: Any, rows: Rows, device: Device, found: Estimate, processes: int) -> None:
    """Refuse a run whose estimate is above the whole memory of the device.

    Raises:
        OutOfMemory: with the table of the estimate, and overrides that need less.
    """
    _require_host(cfg, found, device, processes)
    sharing = processes if device.kind == "cpu" else 1
    if found.peak[1] <= device.total_bytes / sharing:
        return
    advice = advice_lines(
        cheapest_overrides(command_of(cfg), cfg, rows, device, processes=processes)
    )
    raise OutOfMemory("\n".join([format_estimate(found, device), *advice]))


def _require_host(cfg: Any, found: Estimate, device: Device, processes: int) -> None:
    """Refuse an offload that this machine's memory cannot keep; a stated device is elsewhere."""
    here = min(processes, int(os.environ.get("LOCAL_WORLD_SIZE", processes)))
    size, memory = here * sum(found.host.values()), machine_memory()
    if device.stated or size <= memory:
        return
    raise OutOfMemory(
        f"launch.offload: got {cfg.launch.offload}, for which {here} processes keep "
        f"{format_bytes(size)} on this machine, which has {format_bytes(memory)}; need more "
        "machines or a smaller optimizer state. Try train.optimizer=adamw_8bit"
    )


def refuse_too_large(cfg: Any, processes: int = 1) -> None:
    """Refuse a command whose models cannot fit, before anything is loaded.

    Its rows are not known yet and counted as short, so that nothing is refused that could run.

    Raises:
        OutOfMemory: with the table of the estimate, and overrides that need less.
    """
    command = command_of(cfg)
    if command not in ESTIMATED:
        return
    device = find_device(cfg.device_memory)
    length = min(LEAST_TOKENS, Rows.of_config(cfg).longest)
    rows = Rows(length, length, longest_prompt=1)
    try:
        tokens = LEAST_TOKENS if hasattr(cfg, "train") else 0
        found = estimate_memory(
            command, cfg, rows, device, processes=processes, micro_batch_tokens=tokens
        )
    except ConfigError:  # a model that transformers may still load
        return
    require_fit(cfg, rows, device, found, processes)


ESTIMATED = (
    "pretrain",
    "sft",
    "reward",
    "dpo",
    "bco",
    "ppo",
    "grpo",
    "distill",
    "generate",
    "evaluate",
)
"""Commands that the memory model covers."""
