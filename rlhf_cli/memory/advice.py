"""Overrides that need less memory, found by estimates of the changed config."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from rlhf_cli.errors import RlhfError
from rlhf_cli.memory.device import Device
from rlhf_cli.memory.estimate import Estimate, Rows, estimate_memory
from rlhf_cli.memory.model_files import read_shape
from rlhf_cli.memory.training import LEAST_TOKENS

MOST_OVERRIDES = 3

QUANT = "needs the extra quant"

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
    yield from _step_changes(cfg, before)
    yield from _sharding_changes(cfg, before.processes)
    yield from _context_changes(cfg, before.processes)
    yield from _weight_changes(cfg)
    copies = command == "dpo" and cfg.model.reference == "copy"
    if copies and not (cfg.sync_steps or cfg.generates):
        cost = "a pass over the rows before the first step; the same result but for rounding"
        yield Change({"model.reference": "stored"}, "model.reference=stored", cost, 1)
    if cfg.generates:
        yield from _rollout_changes(cfg, before)


def _step_changes(cfg: Any, before: Estimate) -> Iterator[Change]:
    """Changes of how a step is computed."""
    tokens = before.micro_batch_tokens
    if tokens > LEAST_TOKENS:
        smaller = max(LEAST_TOKENS, tokens // 4)
        text = f"train.micro_batch_tokens={smaller}"
        cost = "slower where products get small; the same result but for rounding"
        yield Change({"train.micro_batch_tokens": smaller}, text, cost, 0)
    if not cfg.train.gradient_checkpointing and not cfg.train.compile:
        text = "train.gradient_checkpointing=true"
        yield Change(
            {"train.gradient_checkpointing": True}, text, "a third slower; the same result", 1
        )
    if cfg.train.optimizer == "adamw":
        text = "train.optimizer=adamw_8bit"
        yield Change({"train.optimizer": "adamw_8bit"}, text, f"moments in 8 bits; {QUANT}", 2)


def _sharding_changes(cfg: Any, processes: int) -> Iterator[Change]:
    """Changes of what several processes divide, and of what the host keeps for them."""
    if processes == 1:
        return
    if cfg.launch.shard != "none" and cfg.log.sample_prompts:
        cost = "the report has no sample responses; the same result"
        yield Change({"log.sample_prompts": 0}, "log.sample_prompts=0", cost, 0)
    rounding = "the same result but for rounding"
    full = {"launch.shard": "full", "launch.replicas": 1}
    if cfg.launch.shard != "full":
        text = "launch.shard=full" + (" launch.replicas=1" if cfg.launch.replicas > 1 else "")
        cost = f"weights are gathered in each pass; {rounding}"
        yield Change(full, text, cost, 1)
    for kept in ("optimizer", "all"):
        if cfg.launch.offload == "none" or (cfg.launch.offload, kept) == ("optimizer", "all"):
            cost = f"needs the host's memory, and its updates are slower; {rounding}"
            yield from _offloads(cfg, kept, cost)


def _offloads(cfg: Any, kept: str, cost: str) -> Iterator[Change]:
    """Offloading, with sharding where there is none, and without what gathers all weights."""
    values: dict[str, Any] = {"launch.shard": "full"} if cfg.launch.shard == "none" else {}
    values["launch.offload"] = kept
    text = " ".join(f"{key}={value}" for key, value in values.items())
    yield Change(values, text, cost, 2)
    if cfg.log.sample_prompts:
        lean = {**values, "log.sample_prompts": 0}
        yield Change(lean, f"{text} log.sample_prompts=0", f"{cost}; no sample responses", 2)


def _context_changes(cfg: Any, processes: int) -> Iterator[Change]:
    """Let all processes of a run share the tokens of each row."""
    if processes > cfg.launch.context_parallel:
        text = f"launch.context_parallel={processes}"
        cost = "processes share tokens, not rows: more communication; the same result"
        yield Change({"launch.context_parallel": processes}, text, cost, 1)


def _weight_changes(cfg: Any) -> Iterator[Change]:
    """Changes of which weights are trained and how the others are kept."""
    if cfg.adapter.kind != "none" or read_shape(cfg.model).adapters:
        if cfg.quant.kind in ("auto", "none"):
            yield Change({"quant.kind": "nf4"}, "quant=nf4", f"weights in 4 bits; {QUANT}", 4)
        return
    yield Change({"adapter.kind": "lora"}, "adapter=lora", "trains low-rank matrices only", 3)
    yield Change(
        {"adapter.kind": "lora", "quant.kind": "nf4"},
        "adapter=lora quant=nf4",
        f"trains low-rank matrices beside weights in 4 bits; {QUANT}",
        5,
    )


def _rollout_changes(cfg: Any, before: Estimate) -> Iterator[Change]:
    if before.slots > 1:
        fewer = max(1, before.slots // 4)
        cost = "slower rollouts; the same responses but for rounding"
        yield Change({"max_num_seqs": fewer}, f"max_num_seqs={fewer}", cost, 0)
    if getattr(cfg, "has_value_model", False) and cfg.value != "shared":
        values = {"value": "shared", "value_model": ""}
        text = "value=shared" + (" value_model=" if cfg.value_model else "")
        yield Change(values, text, "the value model is a head on the policy", 3)


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
