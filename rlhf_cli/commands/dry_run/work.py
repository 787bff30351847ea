"""Work of a run in FLOPs, by what it is for, and the time that it takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from rlhf_cli.commands.dry_run.rates import Rate
from rlhf_cli.commands.dry_run.rows import RowFacts, RunRows
from rlhf_cli.commands.dry_run.section import Section, format_flops, format_seconds
from rlhf_cli.commands.dry_run.steps import Steps
from rlhf_cli.memory.roles import reference_kind
from rlhf_cli.memory.rollout import DEFAULT_SLOTS
from rlhf_cli.memory.weights import HeldModel, is_expert
from rlhf_cli.train.flops import FlopCount


@dataclass(frozen=True)
class Work:
    """Work for one purpose.

    Attributes:
        name: `train`, `reference`, `rollout`, `score`, `evaluate` ...
        flops: of the whole run.
        read_bytes: read from memory where that takes longer than computing: by decoding.
    """

    name: str
    flops: float
    read_bytes: float = 0.0

    def seconds(self, rate: Rate) -> float:
        """Seconds at a rate: of the slower of computing and reading."""
        reading = self.read_bytes / rate.bandwidth if rate.bandwidth else 0.0
        return max(self.flops / rate.flops, reading)


def forward_flops(model: HeldModel, *, scores: bool = False) -> FlopCount:
    """FLOPs of a forward pass: 2 a weight and token, 4 a pair of tokens, head and width."""
    shape = model.shape
    used = shape.experts_per_token / shape.experts if shape.experts else 1.0
    weights = sum(t.count * (used if is_expert(t) else 1.0) for t in shape.matrices)
    return FlopCount(
        token=2 * (weights + model.adapter),
        pair=4 * shape.heads * shape.head_dim * shape.layers,
        scored=0.0 if scores else 2.0 * shape.width * shape.vocab,
    )


def training_flops(model: HeldModel, *, scores: bool = False, recompute: bool = False) -> FlopCount:
    """FLOPs of a forward and backward pass.

    A weight's backward pass costs twice the forward pass; under an adapter, whose base has no
    gradient of its own, once. Activation checkpointing adds a forward pass of the layers.
    """
    forward = forward_flops(model, scores=scores)
    adapter = 2 * model.adapter
    passes = 3 if model.trains_base else 2
    again = 1 if recompute else 0
    return FlopCount(
        token=(passes + again) * (forward.token - adapter) + (3 + again) * adapter,
        pair=(3 + again) * forward.pair,
        scored=passes * forward.scored,
    )


def stage_work(stage: str, cfg: Any, rows: RunRows, steps: Steps, model: HeldModel) -> list[Work]:
    """Work of a stage that trains on rows."""
    scores = stage == "reward"
    forward = forward_flops(model, scores=scores)
    training = training_flops(model, scores=scores, recompute=cfg.train.gradient_checkpointing)
    epochs = steps.total / steps.per_epoch
    found = [Work("training", epochs * _of_rows(training, rows.train))]
    kind = reference_kind(cfg) if stage in ("dpo", "bco") else "none"
    sets = [rows.train, *([rows.held_out] if rows.held_out else [])]
    if kind in ("stored", "path"):
        found.append(Work("reference", sum(_of_rows(forward, each) for each in sets)))
    elif kind != "none":
        found.append(Work("reference", epochs * _of_rows(forward, rows.train)))
    if rows.held_out:
        found.append(Work("evaluation", steps.evaluations * _of_rows(forward, rows.held_out)))
    return found


def _of_rows(count: FlopCount, rows: RowFacts) -> float:
    return rows.share * count.of_rows(rows.lengths, rows.scored)


def rollout_work(
    cfg: Any, rows: RunRows, steps: Steps, models: Iterable[HeldModel], itemsize: int
) -> list[Work]:
    """Work of PPO and online DPO, if every response has `sampling.max_new_tokens` tokens.

    A rollout is sampled, unless servers generate, and scored. In PPO its log-probs (with
    `rollout_logprobs=recompute`), reference log-probs and values are computed, and it is trained on
    `ppo_epochs` times. In online DPO the reference log-probs of the pairs are computed, which are
    trained on once.
    """
    held = list(models)
    policy, roles = held[0], {model.role: model for model in held}
    new, responses = cfg.sampling.max_new_tokens, cfg.train.batch_size * cfg.samples_per_prompt
    prompts = rows.train.lengths
    lengths = prompts + new
    per_response = responses * steps.total / max(len(lengths), 1)
    forward = forward_flops(policy)
    scored = new * len(lengths)
    used = per_response * cfg.rows_per_prompt / cfg.samples_per_prompt
    one_pass = used * forward.of_rows(lengths, scored)
    recompute = cfg.train.gradient_checkpointing
    trained = training_flops(policy, recompute=recompute).of_rows(lengths, scored)
    passes = 1 if getattr(cfg, "reuses_logprobs", True) else 2  # reference, and the policy's own
    found = [Work("log-probs", passes * one_pass)]
    in_process = not cfg.rollout.is_used
    if in_process:
        count = steps.total * responses
        found.insert(0, decode_work(policy, prompts, new, count, DEFAULT_SLOTS, itemsize))
    value = roles.get("value")
    if value is not None and value.trained > policy.shape.width + 1:
        trained += training_flops(value, scores=True, recompute=recompute).of_rows(lengths, 0)
        values = forward_flops(value, scores=True).of_rows(lengths, 0)
        found.append(Work("values", per_response * values))
    for model in held:
        if model.role == "reward":
            scores = forward_flops(model, scores=True).of_rows(lengths, 0)
            found.append(Work("scores", per_response * scores))
    found.append(Work("training", getattr(cfg, "ppo_epochs", 1) * used * trained))
    if rows.held_out and in_process:
        count = steps.evaluations * rows.held_out.count
        decoded = decode_work(policy, rows.held_out.lengths, new, count, DEFAULT_SLOTS, itemsize)
        found.append(Work("evaluation", decoded.flops, decoded.read_bytes))
    return found


def distill_work(
    cfg: Any, rows: RunRows, steps: Steps, models: Iterable[HeldModel], itemsize: int
) -> list[Work]:
    """Work of distillation, if every response has `sampling.max_new_tokens` tokens.

    Responses are sampled; on them and on completions, counted as long, teacher and student run
    once. A teacher that is a server works elsewhere.
    """
    held = list(models)
    student = held[0]
    new, samples = cfg.sampling.max_new_tokens, cfg.samples_per_prompt
    responses = steps.total * cfg.prompts_per_step * samples
    kept = steps.total * cfg.completions_per_step
    if cfg.generates:
        lengths, scored = rows.train.lengths + new, new * len(rows.train.lengths)
    else:
        lengths, scored = rows.train.lengths, rows.train.scored
    share = (responses + kept) / max(len(lengths), 1)
    training = training_flops(student, recompute=cfg.train.gradient_checkpointing)
    found = [Work("training", share * training.of_rows(lengths, scored))]
    if not cfg.teacher_is_server:
        teacher = next((model for model in held if model.role == "teacher"), student)
        found.append(Work("teacher", share * forward_flops(teacher).of_rows(lengths, scored)))
    if responses:
        prompts = rows.train.lengths
        found.insert(0, decode_work(student, prompts, new, responses, DEFAULT_SLOTS, itemsize))
    if rows.held_out:
        count, per_row = steps.evaluations, rows.held_out.lengths + (new if cfg.generates else 0)
        both = forward_flops(student).of_rows(per_row, new * len(per_row))
        found.append(Work("evaluation", 2 * count * both))
    return found


def decode_work(
    model: HeldModel, prompts: Any, new: int, responses: float, slots: int, itemsize: int
) -> Work:
    """Work of sampling responses of `new` tokens each.

    Every step of decoding reads all weights, and the keys and values of all tokens before.
    """
    shape = model.shape
    lengths = np.asarray(prompts) + new
    flops = forward_flops(model).of_rows(lengths, new * len(lengths)) / max(len(lengths), 1)
    batch = max(1.0, min(slots, responses))
    weights = itemsize * sum(t.count for t in shape.tensors)
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * itemsize
    held = float(np.mean(prompts)) + new / 2 if len(lengths) else 0.0
    batches = ceil(responses / batch)
    return Work("sampling", responses * flops, batches * new * (weights + batch * held * cache))


def time_section(work: list[Work], rate: Rate, processes: int, left: float = 1.0) -> Section:
    """Build lines about the time of a run, and what it is estimated from.

    Args:
        work: by purpose.
        rate: of the device.
        processes: devices that share the work.
        left: share of the steps that a continued run still has to take.
    """
    flops = sum(each.flops for each in work)
    facts: dict[str, Any] = {
        "flops": flops,
        "flops_per_second": rate.flops,
        "rate": rate.source,
        "phases": {each.name: {"flops": each.flops} for each in work},
    }
    head = f"{format_flops(flops)}: " + ", ".join(
        f"{each.name} {each.flops / max(flops, 1):.0%}" for each in work if each.flops
    )
    if not rate.flops:
        text = f"not known: {rate.source}. Try device_flops=200e12, what training reaches there"
        return Section("time", [("work", head), ("time", text)], facts)
    seconds = {each.name: left * each.seconds(rate) / processes for each in work}
    facts["seconds"] = sum(seconds.values())
    for name, spent in seconds.items():
        facts["phases"][name]["seconds"] = spent
    most = ", ".join(f"{name} {format_seconds(spent)}" for name, spent in seconds.items())
    return Section(
        "time",
        [
            ("work", head),
            ("time", f"about {format_seconds(sum(seconds.values()))}: {most}"),
            ("assumed", rate.source),
            ("", "loading, saving and the time between steps are not counted"),
        ],
        facts,
    )
