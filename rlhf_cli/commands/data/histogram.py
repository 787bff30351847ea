"""A histogram of lengths as lines of text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BINS, WIDTH = 12, 40
BLOCK = "█"


def draw_histogram(lengths: Sequence[int], limit: int, limit_name: str) -> list[str]:
    """Draw how many rows have which length, and where the limit is.

    Args:
        lengths: tokens of each row.
        limit: longest row that is not truncated.
        limit_name: key of the limit.
    """
    top = max(lengths)
    edges = np.unique(np.linspace(0, top, BINS + 1).round().astype(int))
    if 0 < limit < top:
        edges = np.unique([*edges, limit])
    counts, _ = np.histogram(lengths, [*edges[:-1] + 1, top + 1])
    most, width = max(counts.max(), 1), len(str(top))
    lines = []
    for start, end, count in zip(edges[:-1], edges[1:], counts, strict=True):
        bar = BLOCK * (round(WIDTH * count / most) or int(bool(count)))
        lines.append(f"  {start + 1:>{width}}–{end:>{width}}  {bar}{' ' if bar else ''}{count}")
        if end == limit and limit < top:
            lines.append(f"  {'-' * 12} {limit_name}={limit} {'-' * 12}")
    return lines
