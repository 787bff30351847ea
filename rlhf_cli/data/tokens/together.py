"""What the rows of one example must have in common, and what not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlhf_cli.data.records.row_errors import Refused
from rlhf_cli.data.tokens.tokenize import TokenRow
from rlhf_cli.data.tokens.truncation import Truncated


def require_one_prompt(rows: Sequence[TokenRow]) -> None:
    """All rows have the same tokens before the response.

    Raises:
        Refused: a chat template wrote the prompt otherwise before another response.
    """
    start = rows[0].response_start
    prompt = rows[0].tokens[:start]
    for row in rows[1:]:
        if row.response_start != start or not np.array_equal(row.tokens[:start], prompt):
            raise Refused("the chat template writes the prompt otherwise for another response")


def require_different(rows: Sequence[TokenRow], cut: Sequence[Truncated], max_length: int) -> None:
    """Of several responses, not all are the same: there would be nothing to choose from.

    Raises:
        Refused: they have the same tokens, in full or in what is left of them.
    """
    if _same(rows):
        raise Refused("all responses have the same tokens")
    if _same([one.row for one in cut]):
        raise Refused(f"all responses are the same within data.max_length={max_length} tokens")


def _same(rows: Sequence[TokenRow]) -> bool:
    first, *others = rows
    return bool(others) and all(np.array_equal(first.tokens, row.tokens) for row in others)
