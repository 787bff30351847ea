"""Rules about runs that lower a loss on rows: pretrain, sft, reward, dpo, bco and distill."""

from statistics import median

from rlhf_cli.diagnosis.findings import Finding
from rlhf_cli.diagnosis.series import (
    MIN_LINES,
    change,
    change_of,
    number,
    peak_rate,
    scaled,
    times,
    values_of,
)
from rlhf_cli.runs.record import RunRecord

FALL = 0.01
"""Relative fall of the loss below which a run has learned nothing to speak of."""

RISE = 0.02
"""Relative rise of a held-out loss above its minimum that counts as overfitting; rounding and the
choice of rows change it by less."""

NEAR_ZERO = 0.02
"""Training loss, nats per token, below which rows are recited: text has more entropy than that."""

GRADIENT_GROWTH = 20.0
"""Factor by which the gradient norm may grow from the first to the last third."""

ALWAYS = 0.95
"""Share of steps that counts as all."""

SHOWN_ROWS = 5
"""Rows of a spike that are named."""


def loss_falls(record: RunRecord) -> Finding | None:
    """Whether the training loss fell; a run at ln 2 that compares responses is not judged here."""
    sudden = {one.get("step") for one in record.spikes}
    losses = [value for step, value in record.series("loss") if step not in sudden]
    found = change_of(losses, MIN_LINES)
    if found is None:
        return None
    numbers = {"first": found.first, "last": found.last}
    shown = f"from {found.first:.4g} to {found.last:.4g}"
    if found.rose and found.last > found.first + FALL * abs(found.first):
        return Finding(
            code="loss.rose",
            severity="problem",
            sentence=f"The training loss rose {shown}.",
            cause=f"The learning rate, {peak_rate(record):.2g} at its peak, is too high.",
            advice=(
                scaled(record, "train.lr", 0.1),
                f"train.warmup_steps={max(10, len(record.training) // 20)}",
            ),
            numbers=numbers,
        )
    held_out = _first_and_last(record)
    learned = held_out is not None and held_out[1] < held_out[0] - FALL * abs(held_out[0])
    fell = found.fell and found.difference < -FALL * abs(found.first)
    if fell or learned or record.stage in ("dpo", "bco"):
        sentence = f"The training loss went {shown}."
        return Finding(code="loss.fell", severity="ok", sentence=sentence, numbers=numbers)
    if len(record.training) < 2 * MIN_LINES:
        return None
    return Finding(
        code="loss.flat",
        severity="warning",
        sentence=f"The training loss did not fall: {shown}.",
        cause=f"The learning rate, {peak_rate(record):.2g} at its peak, is too low for so few "
        "steps, or the model knew the rows already.",
        advice=(scaled(record, "train.lr", 10), times(record, "train.epochs", 3, 1)),
        numbers=numbers,
    )


def _first_and_last(record: RunRecord) -> tuple[float, float] | None:
    """The first and the last held-out loss."""
    values = values_of(record, "eval/loss")
    return (values[0], values[-1]) if len(values) > 1 else None


def overfitting(record: RunRecord) -> Finding | None:
    """Whether the held-out loss rose while the training loss went on falling."""
    losses = record.series("eval/loss")
    if len(losses) < 2:
        return None
    step, best = min(losses, key=lambda pair: pair[1])
    last_step, last = losses[-1]
    numbers = {"best": best, "best_step": float(step), "last": last}
    trained = change_of(values_of(record, "loss"), least=4)
    falling = trained is not None and trained.last < trained.first
    if last <= best + RISE * abs(best) or not falling:
        sentence = f"The held-out loss is {last:.4g}, its lowest {best:.4g}, in step {step}."
        return Finding(code="loss.held_out", severity="ok", sentence=sentence, numbers=numbers)
    dense = len(losses) > 2
    where = f"after step {step}" if dense else "between the first and the last step"
    advice = (
        (f"train.max_steps={step}", "train.result=best")
        if dense and step
        else (scaled(record, "train.lr", 0.3), f"train.eval_steps={max(1, last_step // 10)}")
    )
    return Finding(
        code="loss.overfit",
        severity="problem" if last > 1.1 * abs(best) else "warning",
        sentence=(
            f"The held-out loss rose {where}, from {best:.4g} to {last:.4g}, while the training "
            "loss fell."
        ),
        cause="The model learns its rows by heart (overfitting): too many epochs, too few rows.",
        advice=advice,
        numbers=numbers,
    )


def recitation(record: RunRecord) -> Finding | None:
    """Whether the training loss of a language model is near 0."""
    found = change(record, "loss", MIN_LINES)
    if found is None or record.stage not in ("pretrain", "sft"):
        return None
    if found.last > NEAR_ZERO:
        return None
    return Finding(
        code="loss.near_zero",
        severity="problem",
        sentence=f"The training loss is {found.last:.2g} nats per token: rows are recited.",
        cause="There are few distinct rows, they repeat, or they are seen too often.",
        advice=("train.epochs=1", scaled(record, "train.lr", 0.3)),
        numbers={"last": found.last},
    )


def gradients(record: RunRecord) -> Finding | None:
    """Whether the gradient norm grew, and how often it was clipped."""
    norms = values_of(record, "grad_norm")
    if len(norms) < 2 * MIN_LINES:
        return None
    third = len(norms) // 3
    first, last = median(norms[:third]), median(norms[-third:])
    limit = number(record, "train.max_grad_norm", 1.0)
    clipped = sum(norm > limit for norm in norms) / len(norms) if limit else 0.0
    numbers = {"first": first, "last": last, "clipped": clipped}
    if first and last > GRADIENT_GROWTH * first:
        return Finding(
            code="gradient.grew",
            severity="warning",
            sentence=f"The gradient norm grew from {first:.3g} to {last:.3g}.",
            cause="Training is unstable: the learning rate is too high.",
            advice=(scaled(record, "train.lr", 0.3),),
            numbers=numbers,
        )
    if clipped >= ALWAYS:
        return Finding(
            code="gradient.clipped",
            severity="note",
            sentence=f"{clipped:.0%} of the steps were clipped: the gradient norm is "
            f"{median(norms):.3g}, train.max_grad_norm {limit:g}.",
            cause="AdamW is little affected by a constant factor, so this alone is no fault.",
            numbers=numbers,
        )
    sentence = f"The gradient norm went from {first:.3g} to {last:.3g}; {clipped:.0%} clipped."
    return Finding(code="gradient.norm", severity="ok", sentence=sentence, numbers=numbers)


def spikes(record: RunRecord) -> Finding | None:
    """Steps of sudden loss, with the rows of the worst of them."""
    if not record.training:
        return None
    found = [one for one in record.spikes if isinstance(one.get("loss"), int | float)]
    if not found:
        return Finding(code="loss.spikes", severity="ok", sentence="No step had a sudden loss.")
    worst = max(found, key=lambda one: one["loss"])
    rows = [str(row) for row in worst.get("rows", [])]
    named = ", ".join(rows[:SHOWN_ROWS])
    more = f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
    before = worst.get("before")
    usual = f" against {before:.4g} before" if isinstance(before, int | float) else ""
    times_ = f"{len(found)} steps" if len(found) > 1 else "1 step"
    return Finding(
        code="loss.spikes",
        severity="warning",
        sentence=(
            f"The loss rose suddenly in {times_}, most in step {worst.get('step')}: "
            f"{worst['loss']:.4g}{usual}. Its rows, the highest loss first: "
            f"{named or 'not recorded'}{more}."
        ),
        cause="A row unlike the others (another language, garbage, a wrong column), or a rate at "
        "the edge of stability.",
        advice=(scaled(record, "train.lr", 0.5),),
        numbers={"steps": float(len(found)), "loss": float(worst["loss"])},
    )


RULES = (loss_falls, overfitting, recitation, gradients, spikes)
