"""Memory of `generate` and `evaluate`."""

from math import ceil
from typing import Any

from rlhf_cli.memory import activations, rollout
from rlhf_cli.memory.activations import Pass
from rlhf_cli.memory.device import Device
from rlhf_cli.memory.parts import (
    Estimate,
    Parts,
    Rows,
    Settings,
    add,
    compute_itemsize,
    shape_notes,
)
from rlhf_cli.memory.training import LEAST_TOKENS, MOST_TOKENS
from rlhf_cli.memory.weights import HeldModel, frozen_model


def estimate(settings: Settings) -> Estimate:
    """Estimate `generate` or `evaluate`: one model at a time, and its largest pass."""
    cfg, rows = settings.cfg, settings.rows
    b = compute_itemsize(cfg.precision, settings.device)
    model = frozen_model(cfg.model, "policy", b, "model.path", cfg.quant)
    held: Parts = {"policy weights": model.frozen_bytes}
    loading = dict(held)
    if settings.device.kind == "cpu" and model.quantized:
        add(loading, "reading", model.shape.stored_bytes)
    phases, slots, tokens = {"load": loading}, 0, 0
    if settings.command == "generate" or cfg.judge:
        slots = cfg.batch_size
        longest = (rows.longest_prompt or rows.longest) + cfg.sampling.max_new_tokens
        phases["rollout"] = held | rollout.decode_parts(
            model, b, slots, longest, settings.device.kind
        )
    else:
        tokens = cfg.micro_batch_tokens or MOST_TOKENS[settings.device.kind]
        phases["evaluate"] = held | _evaluation(settings, model, b, tokens)
    return Estimate(
        {name: settings.with_allocator(parts, b) for name, parts in phases.items()},
        settings.usable,
        micro_batch_tokens=tokens,
        slots=slots,
        processes=settings.processes,
        notes=shape_notes([model]),
    )


def fit_tokens(cfg: Any, b: int, rows: Rows, device: Device) -> int:
    """Most tokens of a pass of held-out rows that fit, at least `LEAST_TOKENS`.

    Args:
        cfg: `model`, `quant` of the model that is evaluated.
        b: bytes of the compute type.
        rows: held-out rows.
        device: that it runs on.
    """
    settings = Settings("evaluate", cfg, rows, device, 1)
    model = frozen_model(cfg.model, "policy", b, "model.path", cfg.quant)
    tokens = MOST_TOKENS[device.kind]
    while tokens > LEAST_TOKENS:
        parts = {"weights": model.frozen_bytes} | _evaluation(settings, model, b, tokens)
        if sum(settings.with_allocator(parts, b).values()) <= settings.usable:
            break
        tokens = max(LEAST_TOKENS, tokens * 3 // 4)
    return tokens


def _evaluation(settings: Settings, model: HeldModel, b: int, tokens: int) -> Parts:
    rows = settings.rows
    forward = Pass(
        b,
        settings.device.kind,
        tokens=max(tokens, rows.longest * rows.rows_per_example),
        length=min(rows.longest, ceil(rows.mean + (rows.longest - rows.mean) / 3)),
        scored=ceil(tokens * min(1.0, (rows.scored or rows.mean) / rows.mean)),
        attention=settings.cfg.model.attention,
    )
    return {
        "activations": activations.transient_bytes(model, forward),
        "logits": activations.logits_bytes(model.shape, forward, backward=False),
    }
