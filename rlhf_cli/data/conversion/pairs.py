"""Preference pairs of a ranking: all of them, the best with the worst, or neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations, pairwise

import numpy as np

from rlhf_cli.data.records.types import PreferenceRecord, RankedRecord

Pair = tuple[int, int]

CHOICES: dict[str, Callable[[list[int]], Iterator[Pair]]] = {
    "all": lambda order: combinations(order, 2),
    "best_worst": lambda order: iter([(order[0], order[-1])]),
    "adjacent": lambda order: pairwise(order),
}
"""Value of `pairs` -> pairs of responses, from the order of the responses, the best first."""


def rank_to_pairs(record: RankedRecord, choice: str) -> tuple[list[PreferenceRecord], int]:
    """Make pairs of a ranking; the margin is the difference of the scores.

    Args:
        record: the ranking.
        choice: key of `CHOICES`.

    Returns:
        The pairs, and the number of pairs that were skipped because their scores are equal as
        32-bit numbers, or their responses are the same.
    """
    order = sorted(range(len(record.scores)), key=lambda i: -record.scores[i])
    pairs, skipped = [], 0
    for better, worse in CHOICES[choice](order):
        margin = record.scores[better] - record.scores[worse]
        same = record.responses[better] == record.responses[worse]
        if same or np.float32(record.scores[better]) == np.float32(record.scores[worse]):
            skipped += 1
            continue
        chosen, rejected = record.responses[better], record.responses[worse]
        pairs.append(PreferenceRecord(record.prompt, chosen, rejected, margin))
    return pairs, skipped
