"""Responses in a report: fixed prompts through time, rollouts, best and worst by reward."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from rlhf_cli.diagnosis.series import correlation
from rlhf_cli.report.plots import Points, draw_scatter
from rlhf_cli.report.series import pick
from rlhf_cli.report.text import clean, show_number

PROMPT_CHARACTERS, RESPONSE_CHARACTERS = 500, 900

MOST_PROMPTS = 6
MOST_STEPS = 4
"""Steps of the fixed prompts that stand beside each other."""

PER_STEP = 3
"""Responses of a rollout that stand below each other."""

EXTREMES = 4
"""Best responses, and as many of the worst."""

SCATTER_FROM = 8
"""Fewer scored responses are not drawn."""


@dataclass(frozen=True)
class Shown:
    """A response as it is shown.

    Attributes:
        step: after which it was generated.
        prompt: its text.
        response: its text.
        facts: score, KL and length, as far as known.
    """

    step: int
    prompt: str
    response: str
    facts: str


@dataclass(frozen=True)
class Through:
    """Responses to one prompt, of a few steps.

    Attributes:
        prompt: its text.
        responses: oldest first.
    """

    prompt: str
    responses: Sequence[Shown]


@dataclass(frozen=True)
class SampleViews:
    """Everything that a report shows of a run's responses.

    Attributes:
        fixed: fixed prompts through time.
        rollouts: some responses of a few rollouts, oldest first.
        best: responses with the highest scores.
        worst: responses with the lowest scores.
        scatter: score against length; empty without enough scores.
        correlation: of both, in words; empty where undefined.
        scored: number of scored responses.
    """

    fixed: Sequence[Through] = ()
    rollouts: Sequence[tuple[int, Sequence[Shown]]] = ()
    best: Sequence[Shown] = ()
    worst: Sequence[Shown] = ()
    scatter: Markup = field(default_factory=Markup)
    correlation: str = ""
    scored: int = 0


def view(samples: Sequence[Mapping[str, Any]], fixed: Sequence[Mapping[str, Any]]) -> SampleViews:
    """Choose and draw what is shown.

    Args:
        samples: lines of `samples.jsonl`.
        fixed: lines of `fixed_samples.jsonl`.
    """
    rows = [row for row in samples if _usable(row)]
    scored = [row for row in rows if _number(row, "score") is not None]
    unique = list({(_text(row, "prompt"), _text(row, "response")): row for row in scored}.values())
    ranked = sorted(unique, key=lambda row: -float(row["score"]))
    count = min(EXTREMES, len(ranked) // 2)
    points = _points(scored)
    together = correlation(points.x, points.y) if points else None
    return SampleViews(
        fixed=_through([row for row in fixed if _usable(row)]),
        rollouts=_rollouts(rows),
        best=[_show(row) for row in ranked[:count]],
        worst=[_show(row) for row in ranked[::-1][:count]],
        scatter=draw_scatter(points, "tokens", "score") if points else Markup(""),
        correlation="" if together is None else show_number(together),
        scored=len(scored),
    )


def _usable(row: Mapping[str, Any]) -> bool:
    return _number(row, "step") is not None and "response" in row


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name, "")
    return value if isinstance(value, str) else str(value)


def _show(row: Mapping[str, Any]) -> Shown:
    score, kl, tokens = (_number(row, name) for name in ("score", "kl", "tokens"))
    facts = [
        "" if score is None else f"score {show_number(score)}",
        "" if kl is None else f"KL {show_number(kl)}",
        "" if tokens is None else f"{tokens:,.0f} tokens",
    ]
    return Shown(
        step=int(row["step"]),
        prompt=clean(_text(row, "prompt"), PROMPT_CHARACTERS),
        response=clean(_text(row, "response"), RESPONSE_CHARACTERS),
        facts=" · ".join(fact for fact in facts if fact),
    )


def _through(rows: Sequence[Mapping[str, Any]]) -> list[Through]:
    shown = pick(sorted({int(row["step"]) for row in rows}), MOST_STEPS)
    by_prompt: dict[str, dict[int, Shown]] = {}
    for row in rows:
        if int(row["step"]) in shown:
            by_prompt.setdefault(_text(row, "prompt"), {})[int(row["step"])] = _show(row)
    return [
        Through(clean(prompt, PROMPT_CHARACTERS), [of[step] for step in sorted(of)])
        for prompt, of in list(by_prompt.items())[:MOST_PROMPTS]
    ]


def _rollouts(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, Sequence[Shown]]]:
    shown = pick(sorted({int(row["step"]) for row in rows}), MOST_STEPS)
    return [
        (step, [_show(row) for row in rows if int(row["step"]) == step][:PER_STEP])
        for step in shown
    ]


def _points(scored: Sequence[Mapping[str, Any]]) -> Points | None:
    found = [row for row in scored if _number(row, "tokens") is not None]
    if len(found) < SCATTER_FROM:
        return None
    steps = [float(row["step"]) for row in found]
    first, span = min(steps), max(steps) - min(steps)
    return Points(
        x=[float(row["tokens"]) for row in found],
        y=[float(row["score"]) for row in found],
        age=[(step - first) / span if span else 1.0 for step in steps],
        words=[
            f"step {row['step']}: score {show_number(float(row['score']))}, "
            f"{row['tokens']} tokens\n{clean(_text(row, 'response'), 120)}"
            for row in found
        ],
    )
