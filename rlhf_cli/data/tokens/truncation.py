"""What is left of a row that is longer than `data.max_length`."""

from __future__ import annotations

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


def truncate(row: TokenRow, max_length: int, policy: str, bos: int | None) -> Truncated:
    """Cut a row to at most `max_length` tokens.

    Args:
        row: of any length.
        max_length: tokens, at least 2.
        policy: `data.truncation`. `prompt_start` keeps a leading beginning-of-text token, and one
            token of the prompt in any case: the response's first token is predicted from it.
        bos: the beginning-of-text token, if there is one.

    Raises:
        Refused: the policy is `refuse`, or no trained token is left.
    """
    excess = len(row.tokens) - max_length
    if excess <= 0:
        return Truncated(row)
    if policy == "refuse":
        raise Refused(f"longer than data.max_length={max_length} (data.truncation=refuse)")
    kept, from_prompt = np.ones(len(row.tokens), bool), 0
    if policy == "prompt_start":
        head = 1 if row.response_start and row.tokens[0] == bos else 0
        most = row.response_start - max(head, 1)
        from_prompt = max(0, min(excess, most))
        kept[head : head + from_prompt] = False
    from_response = excess - from_prompt
    kept[len(kept) - from_response :] = False
    tokens, trained = row.tokens[kept], row.trained[kept]
    trained[0] = False
    if not trained.any():
        raise Refused(f"no response within data.max_length={max_length} tokens")
    start = min(row.response_start - from_prompt, len(tokens))
    return Truncated(TokenRow(tokens, trained, start), from_prompt, from_response)
