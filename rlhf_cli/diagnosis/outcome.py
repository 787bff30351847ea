"""Rules about every run: how it ended, its rows, its speed and its memory."""

import math
from itertools import pairwise

from rlhf_cli.diagnosis.findings import Finding
from rlhf_cli.diagnosis.series import (
    MIN_LINES,
    change,
    counts,
    last_step,
    number,
    scaled,
    times,
    values_of,
)
from rlhf_cli.runs.record import RunRecord

FEW_STEPS = 10
"""With fewer steps, warm-up and decay of the learning rate take most of the run."""

REFUSED_SHARE = 0.1
"""Share of refused rows above which the rest may not be what was meant."""

CUT_SHARE = 0.2
"""Share of truncated rows above which the model learns from many incomplete rows."""

TRAINED_SHARE = 0.02
"""Share of trained tokens below which nearly all computation is spent on prompts."""

DISTINCT_SHARE = 0.5
"""Share of distinct examples below which an epoch is in fact several."""

SLOWER = 0.6
"""Speed at the end as a fraction of that at the beginning that is noted. It is no warning, because
other programs on the machine slow a run down too."""

NEAR_LIMIT = 0.92
"""Fraction of the device's memory above which one longer batch may not fit; torch's allocator
fragments a few percent."""


def ended(record: RunRecord) -> Finding | None:
    """How the run ended, and the cause of an error where it is known."""
    step, planned = last_step(record), _planned_steps(record)
    where = f"after step {step}" + (f" of {planned}" if planned > step else "")
    again = "The same command with the same output_dir continues it at its last checkpoint."
    if record.status == "complete":
        return Finding(code="run.ended", severity="ok", sentence=f"The run ended {where}.")
    if record.status == "running":
        sentence = f"The run is still going, {where}: what follows is about the steps so far."
        return Finding(code="run.ended", severity="note", sentence=sentence)
    if record.status == "interrupted":
        reason = f": {record.error}" if record.error else ""
        sentence = f"The run was interrupted {where}{reason}."
        cause = "" if "again to continue" in record.error else again
        return Finding(code="run.ended", severity="warning", sentence=sentence, cause=cause)
    if record.status == "failed":
        cause, advice = _cause_of_error(record)
        sentence = f"The run failed {where}: {record.error.rstrip('.')}."
        return Finding(
            code="run.ended", severity="problem", sentence=sentence, cause=cause, advice=advice
        )
    return None


def _planned_steps(record: RunRecord) -> int:
    return int(number(record, "train.max_steps"))


def _cause_of_error(record: RunRecord) -> tuple[str, tuple[str, ...]]:
    """The cause of an error and what to try; the error itself often says both."""
    if "kl_limit" in record.error:
        return (
            "The policy left the reference too fast.",
            (scaled(record, "train.lr", 0.3), _double_kl(record)),
        )
    if record.error.startswith("NonFinite"):
        cause = "A step that is too large, or a type too coarse for a value of the row, overflows."
        return cause, (scaled(record, "train.lr", 0.3), "train.precision=fp32")
    if record.error.startswith("OutOfMemory"):
        return "", ("train.micro_batch_tokens=2048", "train.gradient_checkpointing=true")
    return "", ()


def _double_kl(record: RunRecord) -> str:
    coefficient = number(record, "kl_coef")
    return f"kl_coef={2 * coefficient:g}" if coefficient else "kl_coef=0.05"


def steps_logged(record: RunRecord) -> Finding | None:
    """Whether there are steps to judge the run by, and enough of them."""
    step = last_step(record)
    if not record.training:
        sentence = "No training step was logged, so nothing can be said about the training."
        return Finding(code="run.steps", severity="note", sentence=sentence)
    numbers = {"steps": float(step)}
    if record.status == "complete" and step < FEW_STEPS:
        sentence = (
            f"The run has {step} steps, of which warm-up and decay of the learning rate take most."
        )
        advice = (times(record, "train.batch_size", 0.25, 32), f"train.max_steps={10 * FEW_STEPS}")
        return Finding(
            code="run.steps", severity="note", sentence=sentence, advice=advice, numbers=numbers
        )
    sentence = f"{step} steps are logged."
    return Finding(code="run.steps", severity="ok", sentence=sentence, numbers=numbers)


def finite_values(record: RunRecord) -> Finding | None:
    """Values that are not finite, as other trainers log them and go on."""
    if not record.training:
        return None
    odd = [
        (int(line["step"]), name)
        for line in record.training
        for name, value in line.items()
        if not math.isfinite(value)
    ]
    if not odd:
        return Finding(
            code="run.finite", severity="ok", sentence="All logged values are finite numbers."
        )
    steps = sorted({step for step, _ in odd})
    names = ", ".join(sorted({name for _, name in odd})[:3])
    return Finding(
        code="run.finite",
        severity="problem",
        sentence=f"{names}: not finite in {len(steps)} steps, first in step {steps[0]}.",
        cause="A loss or gradient overflowed; what was trained afterwards is doubtful.",
        advice=(scaled(record, "train.lr", 0.3), "train.precision=fp32"),
        numbers={"steps": float(len(steps)), "first": float(steps[0])},
    )


def warmup(record: RunRecord) -> Finding | None:
    """Whether the learning rate was still rising at the end."""
    rates = values_of(record, "lr")
    if record.status != "complete" or len(rates) < 2:
        return None
    rising = all(later > earlier for earlier, later in pairwise(rates))
    warm = int(number(record, "train.warmup_steps"))
    if not rising:
        return Finding(
            code="run.warmup",
            severity="ok",
            sentence=f"The learning rate reached its peak, {max(rates):.3g}.",
        )
    return Finding(
        code="run.warmup",
        severity="warning",
        sentence=(
            f"The learning rate was still rising when the run ended, at {rates[-1]:.3g}: "
            f"warm-up takes {warm} steps, the run had {last_step(record)}."
        ),
        advice=(f"train.warmup_steps={max(0, last_step(record) // 20)}",),
        numbers={"lr": rates[-1], "warmup_steps": float(warm)},
    )


def speed(record: RunRecord) -> Finding | None:
    """Whether tokens per second fell."""
    found = change(record, "tokens_per_second", 2 * MIN_LINES)
    if found is None:
        return None
    numbers = {"first": found.first, "last": found.last}
    shown = f"from {found.first:,.0f} to {found.last:,.0f} tokens/s"
    if not found.fell or found.ratio > SLOWER:
        sentence = f"The speed was steady, {shown}."
        return Finding(code="run.speed", severity="ok", sentence=sentence, numbers=numbers)
    return Finding(
        code="run.speed",
        severity="note",
        sentence=f"The speed fell {shown}.",
        cause=(
            "Other programs on this machine, heat, or shorter responses (per rollout the same work "
            "for fewer tokens) do this; in training on files the rows do not."
        ),
        numbers=numbers,
    )


def memory(record: RunRecord) -> Finding | None:
    """How near the peak is to the memory of the device; known for finished runs only."""
    limit = record.manifest.get("device_memory_bytes")
    peaks = values_of(record, "memory_bytes")
    if not isinstance(limit, int | float) or limit <= 0 or not peaks:
        return None
    share = max(peaks) / limit
    sentence = f"Peak memory was {max(peaks) / 1e9:.1f} of {limit / 1e9:.1f} GB ({share:.0%})."
    numbers = {"bytes": max(peaks), "limit": float(limit)}
    if share < NEAR_LIMIT:
        return Finding(code="run.memory", severity="ok", sentence=sentence, numbers=numbers)
    return Finding(
        code="run.memory",
        severity="warning",
        sentence=sentence,
        cause="A step of longer rows may not fit.",
        advice=("train.gradient_checkpointing=true", "train.micro_batch_tokens=2048"),
        numbers=numbers,
    )


def refused_rows(record: RunRecord) -> Finding | None:
    """Share of rows that were not trained on."""
    data = counts(record)
    rows, kept = data.get("rows", 0), data.get("kept", 0)
    if not rows:
        return None
    lost = rows - kept - data.get("held_out", 0)
    if data.get("sources") or lost <= 0:
        sentence = f"{kept} of {rows} rows are used."
        return Finding(code="data.refused", severity="ok", sentence=sentence)
    reasons = {text: found["rows"] for text, found in (data.get("refused") or {}).items()}
    worst = max(reasons, key=lambda text: reasons[text], default="malformed")
    return Finding(
        code="data.refused",
        severity="warning" if lost > REFUSED_SHARE * rows else "note",
        sentence=f"{lost} of {rows} rows ({lost / rows:.0%}) are not used; most often: {worst}.",
        cause="`rlhf data check FILE` lists them with their lines.",
        numbers={"rows": float(rows), "lost": float(lost)},
    )


def truncated_rows(record: RunRecord) -> Finding | None:
    """Share of rows that lost tokens."""
    data = counts(record)
    kept, cut = data.get("kept", 0), data.get("cut") or {}
    if not kept:
        return None
    rows = max((found["rows"] for found in cut.values()), default=0)
    if not rows:
        return Finding(code="data.truncated", severity="ok", sentence="No row was truncated.")
    end = max(cut, key=lambda name: cut[name]["rows"])
    return Finding(
        code="data.truncated",
        severity="warning" if rows > CUT_SHARE * kept else "note",
        sentence=f"{rows} of {kept} rows lost tokens ({end} cut).",
        cause="What is cut is never learned; a response without its end has no end token.",
        advice=(times(record, "data.max_length", 2, 1024),),
        numbers={"rows": float(rows), "kept": float(kept)},
    )


def trained_tokens(record: RunRecord) -> Finding | None:
    """Share of tokens that the loss is computed on."""
    data = counts(record)
    tokens, trained = data.get("tokens", 0), data.get("trained_tokens", 0)
    if not tokens or not trained:
        return None
    share = trained / tokens
    sentence = f"The loss is computed on {trained:,} of {tokens:,} tokens ({share:.1%})."
    numbers = {"share": share}
    if share >= TRAINED_SHARE:
        return Finding(code="data.trained", severity="ok", sentence=sentence, numbers=numbers)
    return Finding(
        code="data.trained",
        severity="warning",
        sentence=sentence,
        cause="Prompts are long and responses short, or a wrong column is the response.",
        advice=("data.train_on=all",) if record.stage == "sft" else (),
        numbers=numbers,
    )


def distinct_rows(record: RunRecord) -> Finding | None:
    """Share of examples that differ from all others."""
    data = counts(record)
    examples, distinct = data.get("examples", 0), data.get("distinct", 0)
    if not examples or not distinct:
        return None
    share = distinct / examples
    sentence = f"{distinct} of {examples} examples are distinct."
    numbers = {"examples": float(examples), "distinct": float(distinct)}
    if share >= DISTINCT_SHARE:
        return Finding(code="data.distinct", severity="ok", sentence=sentence, numbers=numbers)
    return Finding(
        code="data.distinct",
        severity="problem" if distinct == 1 else "warning",
        sentence=sentence,
        cause=f"Each is seen {examples / distinct:.0f} times an epoch, and learned by heart.",
        advice=("train.epochs=1",),
        numbers=numbers,
    )


def empty_answers(record: RunRecord) -> Finding | None:
    """Whether the policy ends at once on all fixed prompts after the last step."""
    last = max((row.get("step", 0) for row in record.fixed_samples), default=0)
    shown = [row for row in record.fixed_samples if row.get("step") == last]
    if not last or any(str(row.get("response", "")).strip() for row in shown):
        return None
    as_text = record.options.get("template") == "auto"
    return Finding(
        code="data.empty_answers",
        severity="warning",
        sentence=f"The policy answers all {len(shown)} fixed prompts with nothing.",
        cause="With template=auto, rows of text have no chat template, and a model that was "
        "trained on chats ends at once on a prompt that is no message."
        if as_text
        else "",
        advice=("template=always",) if as_text else (),
        numbers={"prompts": float(len(shown))},
    )


RULES = (
    ended,
    steps_logged,
    finite_values,
    warmup,
    speed,
    memory,
    refused_rows,
    truncated_rows,
    trained_tokens,
    distinct_rows,
    empty_answers,
)
