"""Checks of compared responses: length bias, pairs that hardly differ, margins, tied scores."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.data.checks.content import CheckedData, join
from rlhf_cli.data.checks.finding import Finding, Severity, Tally, excerpt
from rlhf_cli.data.checks.shingles import simplify
from rlhf_cli.data.records.types import PreferenceRecord, RankedRecord
from rlhf_cli.evaluation.intervals import Estimate, wilson_interval

NOTE_SHARE, WARN_SHARE = 0.55, 0.6
"""Share of pairs whose better response is longer, which the interval has to exceed."""

MIN_PAIRS = 30

Values = NDArray[np.float64]


def check_length_bias(data: CheckedData) -> Iterator[Finding]:
    """Check whether the better one of two responses is mostly the longer, or the shorter one."""
    if data.examples is None or "score" not in data.examples.columns:
        return
    if not data.records or not isinstance(data.records[0].record, PreferenceRecord | RankedRecord):
        return
    share, differences, scores = _compare_lengths(data)
    if share.n < MIN_PAIRS:
        return
    for longer, low in ((True, share.low), (False, 1 - share.high)):
        if low <= NOTE_SHARE:
            continue
        which = "longer" if longer else "shorter"
        value = share.value if longer else 1 - share.value
        yield Finding(
            code="length-bias",
            severity="warning" if low > WARN_SHARE else "note",
            message=f"the better response is the {which} one in {100 * value:.0f} % of the "
            f"{'pairs' if scores is None else 'comparisons'} (95 % interval {100 * low:.0f} to "
            f"{100 * (share.high if longer else 1 - share.low):.0f} %; even would be 50 %)"
            f"{_describe(differences, scores)}",
            total=data.total,
            advice=_length_advice(data.stage),
        )


def _compare_lengths(data: CheckedData) -> tuple[Estimate, Values, Values | None]:
    """Return the share of comparisons in which the better response has more tokens.

    Returns:
        The share, with each example counted once; the differences of length of all comparisons;
        and the differences of score, None if pairs have no margin.
    """
    assert data.examples is not None
    lengths = data.trained_tokens.astype(np.float64)
    score = data.examples.columns["score"].astype(np.float64)
    wins, differences, margins = [], [], []
    for start, end in pairwise(data.examples.example_starts.tolist()):
        length, value = lengths[start:end], score[start:end]
        if isinstance(data.records[0].record, PreferenceRecord):
            better, worse = np.array([0]), np.array([1])
        else:
            better, worse = np.nonzero(value[:, None] > value[None])
        difference = length[better] - length[worse]
        differences.append(difference)
        margins.append(value[better] - value[worse])
        if (difference != 0).any():
            wins.append((difference > 0).sum() / (difference != 0).sum())
    found = wilson_interval(sum(wins), len(wins))
    margin = np.concatenate(margins) if margins else np.zeros(0)
    with_margin = margin.size and margin.min() != margin.max()
    return found, np.concatenate(differences or [np.zeros(0)]), margin if with_margin else None


def _describe(differences: Values, margins: Values | None) -> str:
    """Describe the differences of length, and their correlation with the margins."""
    text = f"; median difference {np.median(np.abs(differences)):.0f} tokens"
    if margins is None or differences.min() == differences.max():
        return text
    return f"{text}, correlation with the margin {np.corrcoef(differences, margins)[0, 1]:.2f}"


def _length_advice(stage: str) -> str:
    compare = (
        "Remove pairs until both sides are longer equally often, or compare with "
        "loss_type=sigmoid_norm (mean log-prob per token) or ld_alpha=0.5"
    )
    return {
        "dpo": compare,
        "reward": "Remove comparisons until both sides are longer equally often; after training, "
        "compare accuracy on pairs of similar length, and limit length in ppo with "
        "reward.length_penalty",
    }.get(stage, "Remove pairs until both sides are longer equally often")


def check_similar_responses(data: CheckedData) -> Iterator[Finding]:
    """Check for pairs that differ only in case, white space and punctuation."""
    tally = Tally()
    for record in data.records:
        if isinstance(record.record, PreferenceRecord):
            chosen, rejected = join(record.record.chosen), join(record.record.rejected)
            if simplify(chosen) == simplify(rejected):
                tally.add(
                    record.location, f"{excerpt(chosen, None, 40)} | {excerpt(rejected, None, 40)}"
                )
    yield from tally.report(
        "nearly-equal-pairs",
        "warning",
        "pairs whose responses differ only in case, white space or punctuation",
        data.total,
        advice="Remove them unless that is the preference to learn",
    )


def check_margins(data: CheckedData) -> Iterator[Finding]:
    """Check the sign of margins, and whether they vary."""
    negative, zero = Tally(), Tally()
    margins = []
    for record in data.records:
        if not isinstance(record.record, PreferenceRecord) or record.record.margin is None:
            continue
        margin = record.record.margin
        margins.append(margin)
        if margin < 0:
            negative.add(record.location, f"margin {margin:g}")
        elif margin == 0:
            zero.add(record.location)
    mostly = negative.count > len(margins) / 2
    yield from negative.report(
        "negative-margins",
        "error" if mostly else "warning",
        "pairs whose margin says that the rejected response is better",
        len(margins),
        unit="pair",
        advice="Swap chosen and rejected, or negate margin"
        if mostly
        else "Swap chosen and rejected there, or remove the rows",
    )
    yield from zero.report(
        "zero-margins",
        "note",
        "pairs whose margin is 0, a tie",
        len(margins),
        unit="pair",
        advice="Remove them: neither response is better",
    )
    if len(margins) >= MIN_PAIRS and len({*margins}) == 1:
        yield Finding(
            code="constant-margins",
            severity="note",
            message=f"every margin is {margins[0]:g}, so margins say nothing",
            total=len(margins),
            unit="pair",
        )


def check_ties(data: CheckedData) -> Iterator[Finding]:
    """Check for rankings with equal scores; their comparisons are not used."""
    tally, tied, compared = Tally(), 0, 0
    for record in data.records:
        if not isinstance(record.record, RankedRecord):
            continue
        scores = record.record.scores
        counts = np.unique(np.asarray(scores, np.float32), return_counts=True)[1]
        ties = int((counts * (counts - 1) // 2).sum())
        tied += ties
        compared += len(scores) * (len(scores) - 1) // 2
        if ties:
            shown = ", ".join(f"{score:g}" for score in scores)
            tally.add(record.location, f"scores {excerpt(shown)}")
    share = tied / compared if compared else 0.0
    severity: Severity = "warning" if share > 0.5 else "note"
    yield from tally.report(
        "tied-scores",
        severity,
        f"rankings with equal scores; {100 * share:.1f} % of all comparisons are ties, which no "
        "loss uses",
        data.total,
        advice="Have ties rated again, or leave them",
    )
