"""Responses as the rows of updates: put together once, and computed with in the same company."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.stages.ppo.loss import SAMPLED, TEXT, VALUED


@dataclass(frozen=True)
class Written:
    """One response to one prompt.

    Attributes:
        prompt: index of the prompt in its data set.
        number: of the response in the rollout, over all ranks.
        before: the prompt's tokens.
        tokens: of the response, its end token included where there is one.
        finished: whether it ended by itself.
        behind: a token that stands behind the end for a value of its own (`compat=trl`), or none.
        logprobs: nats, of each token as it was drawn, where those are learned from; else empty.
    """

    prompt: int
    number: int
    before: Sequence[int]
    tokens: Sequence[int]
    finished: bool
    behind: int | None = None
    logprobs: Sequence[float] = ()

    @property
    def scored(self) -> list[int]:
        """The tokens behind the prompt that have a log-prob or a value."""
        return [*self.tokens, *([] if self.behind is None else [self.behind])]

    @property
    def fingerprint(self) -> str:
        """The same for responses of the same tokens, and for no others."""
        return hashlib.sha256(repr(list(self.tokens)).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.before) + len(self.scored)


@dataclass(frozen=True)
class MicroBatch:
    """Rows of some responses.

    Attributes:
        rows: as the policy is given them.
        members: which of this rank's responses they are.
        sizes: scored tokens of each.
    """

    rows: TokenBatch
    members: Sequence[int]
    sizes: list[int]

    def cut(self, values: Tensor) -> dict[int, Tensor]:
        """A number for each scored token [S], by response; fp32 on the CPU."""
        return dict(zip(self.members, values.float().cpu().split(self.sizes), strict=True))

    def with_columns(self, tables: Mapping[str, Tensor]) -> TokenBatch:
        """The rows with numbers of each scored token, cut from tables [B, T] of all responses."""

        def column(whole: Tensor) -> Tensor:
            parts = zip(self.members, self.sizes, strict=True)
            return torch.cat([whole[k, :size] for k, size in parts])

        return self.rows.with_token_columns({name: column(of) for name, of in tables.items()})


def minibatches(
    responses: Sequence[Written],
    parts: int,
    max_tokens: int,
    device: torch.device,
    teaches: Sequence[bool] | None = None,
) -> list[list[MicroBatch]]:
    """The micro-batches of each minibatch.

    They are put together once: old log-probs, the reference's and the updates' are computed with
    the same rows together, so that the first ratio is 1 to the last bit.

    Args:
        responses: of this rank.
        parts: minibatches; which one a response is in depends on its number alone.
        max_tokens: of a micro-batch.
        device: of the rows.
        teaches: of each response, False where its rows have no slope; by default all have. Those
            that have none are by themselves, unless a minibatch has no others: the optimizer then
            takes in a gradient of 0.
    """
    teaches = [True] * len(responses) if teaches is None else teaches
    made: list[list[MicroBatch]] = []
    for part in range(parts):
        members = [k for k, one in enumerate(responses) if one.number % parts == part]
        loud = [k for k in members if teaches[k]] or members
        silent = [k for k in members if k not in set(loud)]
        made.append([])
        for some, trains in ((loud, True), (silent, False)):
            groups = _groups(_in_order(some, responses), responses, max_tokens)
            made[-1] += [_micro_batch(responses, group, device, trains) for group in groups]
    return made


def _in_order(members: Sequence[int], responses: Sequence[Written]) -> list[int]:
    """Long rows first; those to one prompt together, so that the prompt is computed once."""
    longest: dict[int, int] = {}
    for k in members:
        prompt = responses[k].prompt
        longest[prompt] = max(longest.get(prompt, 0), len(responses[k]))

    def place(k: int) -> tuple[int, int, int]:
        prompt = responses[k].prompt
        return -longest[prompt], prompt, -len(responses[k])

    return sorted(members, key=place)


def _groups(
    members: Sequence[int], responses: Sequence[Written], max_tokens: int
) -> list[list[int]]:
    groups: list[list[int]] = []
    room = 0
    for k in members:
        length = len(responses[k])
        if not groups or length > room:
            groups.append([])
            room = max_tokens
        groups[-1].append(k)
        room -= length
    return groups


def _micro_batch(
    responses: Sequence[Written], members: Sequence[int], device: torch.device, trains: bool
) -> MicroBatch:
    tokens: list[int] = []
    lengths: list[int] = []
    scored: list[int] = []
    chosen = [responses[k] for k in members]
    for one in chosen:
        first = len(tokens) + len(one.before) - 1
        scored += range(first, first + len(one.scored))
        tokens += [*one.before, *one.scored]
        lengths.append(len(one))
    rows = TokenBatch(
        torch.tensor(tokens),
        torch.tensor(lengths),
        torch.tensor(scored),
        torch.tensor([one.prompt for one in chosen]),
        needs_backward=trains,
    )
    return MicroBatch(rows.to(device), members, [len(one.scored) for one in chosen])


def table(found: Mapping[int, Tensor], count: int) -> Tensor:
    """[B, T] fp32 on the CPU: the numbers of each response, padded on the right with zeros."""
    if not count:
        return torch.zeros(0, 1)
    return pad_sequence([found[k] for k in range(count)], batch_first=True)


def masks(responses: Sequence[Written]) -> dict[str, Tensor]:
    """[B, T] bool each: which positions were sampled, and which have a value."""
    written = torch.tensor([len(one.tokens) for one in responses], dtype=torch.long)
    valued = torch.tensor([len(one.scored) for one in responses], dtype=torch.long)
    index = torch.arange(max(valued.tolist(), default=1))
    return {SAMPLED: index < written[:, None], VALUED: index < valued[:, None]}


def as_text(rows: TokenBatch) -> TokenBatch:
    """Rows of a language model's data, marked as such."""
    return replace(rows, token_columns={TEXT: torch.ones_like(rows.scored, dtype=torch.bool)})
