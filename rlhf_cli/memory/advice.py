"""Overrides that need less memory, found by estimates of the changed config."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from rlhf_cli.errors import RlhfError
from rlhf_cli.memory.device import Device
from rlhf_cli.memory.estimate import Estimate, Rows, estimate_memory

MOST_OVERRIDES = 3

LEAST_SAVING = 0.02
"""Share of the peak that an override has to save to be named."""


@dataclass(frozen=True)
class Override:
    """A change of the command line that needs less memory.

    Attributes:
        text: ready to paste, as in `train.gradient_checkpointing=true`.
        saves_bytes: of the peak.
        cost: what it costs, in words.
        fits: whether the command fits with this change alone.
    """

    text: str
    saves_bytes: int
    cost: str
    fits: bool


@dataclass(frozen=True)
class Change:
    """A change of some keys, and what it costs.

    Attributes:
        values: dotted key -> new value.
        text: as the user types it.
        cost: in words.
        rank: 0 for what changes nothing but speed, then what changes the result ever more.
    """

    values: dict[str, Any]
    text: str
    cost: str
    rank: int


def cheapest_overrides(
    command: str, cfg: Any, rows: Rows, device: Device, *, processes: int = 1
) -> list[Override]:
    """Find at most three overrides that lower the peak, the cheapest that fit first.

    Args:
        command: a training stage, `generate` or `evaluate`.
        cfg: its checked config.
        rows: of its data.
        device: that it would run on.
        processes: of the run.
    """
    before = estimate_memory(command, cfg, rows, device, processes=processes)
    found: list[tuple[int, Override]] = []
    for change in _changes(command, cfg, before):
        after = _estimate_with(change, command, cfg, rows, device, processes)
        if after is None:
            continue
        saved = before.peak[1] - after.peak[1]
        if saved >= LEAST_SAVING * before.peak[1]:
            found.append((change.rank, Override(change.text, saved, change.cost, after.fits)))
    found.sort(key=lambda pair: (not pair[1].fits, pair[0], -pair[1].saves_bytes))
    return [override for _, override in found[:MOST_OVERRIDES]]


def _estimate_with(
    change: Change, command: str, cfg: Any, rows: Rows, device: Device, processes: int
) -> Estimate | None:
    other = deepcopy(cfg)
    for key, value in change.values.items():
        *path, name = key.split(".")
        owner = other
        for part in path:
            owner = getattr(owner, part)
        setattr(owner, name, value)
    if other.problems():
        return None
    try:
        return estimate_memory(command, other, rows, device, processes=processes)
    except RlhfError:
        return None


def _changes(command: str, cfg: Any, before: Estimate) -> Iterator[Change]:
    """List the changes that a command has, whether or not they help."""
    if command in ("generate", "evaluate"):
        yield from _inference_changes(cfg)
        return
    tokens = before.micro_batch_tokens
    if tokens > 512:
        smaller = tokens // 4
        yield Change(
            {"train.micro_batch_tokens": smaller},
            f"train.micro_batch_tokens={smaller}",
            "slower where products get small; the same result",
            0,
        )
    if not cfg.train.gradient_checkpointing and not cfg.train.compile:
        yield Change(
            {"train.gradient_checkpointing": True},
            "train.gradient_checkpointing=true",
            "about a third slower; the same result",
            1,
        )
    if cfg.train.optimizer == "adamw":
        yield Change(
            {"train.optimizer": "adamw_8bit"},
            "train.optimizer=adamw_8bit",
            "moments in 8 bits; needs the extra quant",
            2,
        )
    if cfg.adapter.kind == "none":
        yield Change({"adapter.kind": "lora"}, "adapter=lora", "trains an adapter only", 3)
        yield Change(
            {"adapter.kind": "lora", "quant.kind": "nf4"},
            "adapter=lora quant=nf4",
            "trains an adapter on 4-bit weights; needs the extra quant",
            5,
        )
    elif cfg.quant.kind in ("auto", "none"):
        yield Change(
            {"quant.kind": "nf4"},
            "quant=nf4",
            "weights in 4 bits; needs the extra quant",
            4,
        )
    if command == "ppo" and cfg.has_value_model and cfg.value == "model":
        yield Change({"value": "shared", "value_model": ""}, "value=shared", "a value head only", 3)


def _inference_changes(cfg: Any) -> Iterator[Change]:
    if cfg.batch_size > 1:
        smaller = max(1, cfg.batch_size // 4)
        cost = "fewer responses at once, slower; the same responses"
        yield Change({"batch_size": smaller}, f"batch_size={smaller}", cost, 0)
    if cfg.quant.kind in ("auto", "none"):
        yield Change({"quant.kind": "nf4"}, "quant=nf4", "weights in 4 bits", 4)
    tokens = getattr(cfg, "micro_batch_tokens", None)
    if tokens is not None and tokens != 512:
        yield Change(
            {"micro_batch_tokens": 512}, "micro_batch_tokens=512", "slower; the same result", 0
        )
