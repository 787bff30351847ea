"""Responses as minibatches of token rows.

The rows of a micro-batch are put together once: old log-probs, reference log-probs and updates are
computed with the same rows, so that the first probability ratio is exactly 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.sampler import group_by_tokens
from rlhf_cli.rollout.response import Response

RESPONSE_MASK = "response_mask"
"""Token column, True for tokens that the policy sampled."""

VALUE_MASK = "value_mask"
"""Token column, True where the value loss counts: with `compat=trl` also the position after the
end, else as `RESPONSE_MASK`."""


@dataclass(frozen=True)
class MicroBatch:
    """Rows of some responses.

    Attributes:
        rows: input of the policy.
        members: which of this rank's responses they are.
        sizes: scored tokens of each.
    """

    rows: TokenBatch
    members: Sequence[int]
    sizes: list[int]

    def split(self, values: Tensor) -> dict[int, Tensor]:
        """Values of the scored tokens [S] by response, in fp32 on the CPU."""
        return dict(zip(self.members, values.float().cpu().split(self.sizes), strict=True))

    def with_columns(self, tables: Mapping[str, Tensor]) -> TokenBatch:
        """The rows with token columns, taken from tables [B, T] of all responses."""

        def column(table: Tensor) -> Tensor:
            parts = zip(self.members, self.sizes, strict=True)
            return torch.cat([table[k, :size] for k, size in parts])

        return self.rows.with_token_columns({name: column(of) for name, of in tables.items()})


def make_minibatches(
    responses: Sequence[Response],
    count: int,
    max_tokens: int,
    device: torch.device,
    has_signal: Sequence[bool] | None = None,
    order: Sequence[int] | None = None,
) -> list[list[MicroBatch]]:
    """Divide responses into minibatches, and each of them into micro-batches.

    Args:
        responses: of this rank.
        count: number of minibatches; which one a response is in depends on its index and `order`
            alone.
        max_tokens: tokens of a micro-batch.
        device: of the rows.
        has_signal: per response, False where its gradient is 0; by default all are True. Responses
            without signal get micro-batches of their own, which need no backward pass, unless a
            minibatch has no others: the optimizer then steps with a gradient of 0.
        order: place of each index among the responses of all ranks; by default the index.
    """
    has_signal = [True] * len(responses) if has_signal is None else has_signal
    places = [one.index if order is None else order[one.index] for one in responses]
    found: list[list[MicroBatch]] = []
    for number in range(count):
        members = [k for k, place in enumerate(places) if place % count == number]
        with_gradient = [k for k in members if has_signal[k]] or members
        without_gradient = [k for k in members if k not in set(with_gradient)]
        found.append([])
        for part, needs_backward in ((with_gradient, True), (without_gradient, False)):
            ordered = _sort_by_length(part, responses)
            groups = group_by_tokens(ordered, lambda k: len(responses[k]), max_tokens)
            found[-1] += [_micro_batch(responses, ids, device, needs_backward) for ids in groups]
    return found


def _sort_by_length(members: Sequence[int], responses: Sequence[Response]) -> list[int]:
    """Long rows first; rows of one prompt together, so that the prompt is computed once."""
    longest: dict[int, int] = {}
    for k in members:
        prompt = responses[k].prompt_index
        longest[prompt] = max(longest.get(prompt, 0), len(responses[k]))

    def sort_key(k: int) -> tuple[int, int, int]:
        prompt = responses[k].prompt_index
        return -longest[prompt], prompt, -len(responses[k])

    return sorted(members, key=sort_key)


def _micro_batch(
    responses: Sequence[Response],
    members: Sequence[int],
    device: torch.device,
    needs_backward: bool,
) -> MicroBatch:
    tokens: list[int] = []
    lengths: list[int] = []
    scored: list[int] = []
    chosen = [responses[k] for k in members]
    for response in chosen:
        first = len(tokens) + len(response.prompt_ids) - 1
        scored += range(first, first + len(response.scored_ids))
        tokens += [*response.prompt_ids, *response.scored_ids]
        lengths.append(len(response))
    rows = TokenBatch(
        torch.tensor(tokens),
        torch.tensor(lengths),
        torch.tensor(scored),
        torch.tensor([response.prompt_index for response in chosen]),
        needs_backward=needs_backward,
    )
    return MicroBatch(rows.to(device), members, [len(one.scored_ids) for one in chosen])


def pad_table(found: Mapping[int, Tensor], count: int) -> Tensor:
    """[B, T] fp32 on the CPU: values by response, padded on the right with zeros."""
    if not count:
        return torch.zeros(0, 1)
    return pad_sequence([found[k] for k in range(count)], batch_first=True)


def response_masks(responses: Sequence[Response]) -> dict[str, Tensor]:
    """[B, T] bool each: `RESPONSE_MASK` and `VALUE_MASK`."""
    sampled = torch.tensor([len(one.token_ids) for one in responses], dtype=torch.long)
    valued = torch.tensor([len(one.scored_ids) for one in responses], dtype=torch.long)
    index = torch.arange(max(valued.tolist(), default=1))
    return {RESPONSE_MASK: index < sampled[:, None], VALUE_MASK: index < valued[:, None]}
