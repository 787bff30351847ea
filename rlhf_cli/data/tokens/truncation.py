"""What is left of rows that are longer than `data.max_length`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_cli.data.records.row_errors import Refused
from rlhf_cli.data.tokens.tokenize import TokenRow


@dataclass(frozen=True, slots=True)
class Truncated:
    """A row that fits, and how many tokens it lost at which end."""

    row: TokenRow
    prompt_start: int = 0
    response_end: int = 0


def truncate(
    rows: Sequence[TokenRow], max_length: int, policy: str, bos: int | None
) -> list[Truncated]:
    """Cut the rows of one example to at most `max_length` tokens each.

    They have one prompt, and keep one: all lose as much of it as the longest needs.

    Args:
        rows: of any length, with the same prompt.
        max_length: tokens, at least 2.
        policy: `data.truncation`. `prompt_start` keeps a leading beginning-of-text token, and one
            token of the prompt in any case: the response's first token is predicted from it.
        bos: the beginning-of-text token, if there is one.

    Raises:
        Refused: the policy is `refuse`, or no trained token is left in a row.
    """
    excess = max(len(row.tokens) for row in rows) - max_length
    if excess <= 0:
        return [Truncated(row) for row in rows]
    if policy == "refuse":
        raise Refused(f"longer than data.max_length={max_length} (data.truncation=refuse)")
    start, head = rows[0].response_start, 0
    from_prompt = 0
    if policy == "prompt_start":
        head = 1 if start and rows[0].tokens[0] == bos else 0
        from_prompt = max(0, min(excess, start - max(head, 1)))
    return [_cut(row, head, from_prompt, max_length) for row in rows]


def _cut(row: TokenRow, head: int, from_prompt: int, max_length: int) -> Truncated:
    kept = np.ones(len(row.tokens), bool)
    kept[head : head + from_prompt] = False
    from_response = max(0, len(kept) - from_prompt - max_length)
    kept[len(kept) - from_response :] = False
    tokens, trained = row.tokens[kept], row.trained[kept]
    trained[0] = False
    if not trained.any():
        raise Refused(f"no response within data.max_length={max_length} tokens")
    start = min(row.response_start - from_prompt, len(tokens))
    return Truncated(TokenRow(tokens, trained, start), from_prompt, from_response)
