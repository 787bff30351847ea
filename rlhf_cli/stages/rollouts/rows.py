"""Responses as token rows, and their KL from a reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.equal_passes import equal_passes
from rlhf_cli.data.examples import Examples, flatten
from rlhf_cli.data.loader import micro_batches
from rlhf_cli.data.tokens.encode import TokenRow
from rlhf_cli.data.tokens.packing import ExampleRow
from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.memory.phase import phase
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.wrapper import without_dropout
from rlhf_cli.rollout.response import Response
from rlhf_cli.stages.reference import ReferenceModel

_ROLLOUT = "rollout"
"""Stands for the file of rows that come from none."""


def response_examples(groups: Sequence[Sequence[Response]]) -> Examples:
    """Make an example of each group of responses, as a data set of such rows would.

    Args:
        groups: responses of each example; each is a row of its prompt and its tokens, which are the
            targets.
    """
    rows = [
        [ExampleRow(_token_row(response), _ROLLOUT, number) for response in group]
        for number, group in enumerate(groups, 1)
    ]
    return flatten(rows, (_ROLLOUT,))


def _token_row(response: Response) -> TokenRow:
    start = len(response.prompt_ids)
    tokens = np.array([*response.prompt_ids, *response.token_ids], np.int32)
    return TokenRow(tokens, np.arange(len(tokens)) >= start, start)


def response_kl(
    responses: Sequence[Response],
    policy: Policy,
    reference: ReferenceModel,
    ranks: Ranks,
    *,
    max_tokens: int,
    temperature: float,
) -> Tensor:
    """[B], nats: log-ratio of policy to reference, summed over each response.

    Its mean over samples of the policy is their KL divergence. All ranks call it together.

    Args:
        responses: of this rank, possibly none.
        policy: wrote the responses.
        reference: frozen.
        ranks: of the run.
        max_tokens: tokens of a micro-batch.
        temperature: of both; that of sampling.
    """

    def logratio(rows: TokenBatch) -> Tensor:
        own: Tensor = policy(rows, temperature=temperature, sampled=True).logp
        return own - reference.logprobs(rows, temperature)

    return _token_values(responses, logratio, policy, ranks, max_tokens).sum(1)


def response_logprobs(
    responses: Sequence[Response],
    policy: Policy,
    ranks: Ranks,
    *,
    max_tokens: int,
    temperature: float,
) -> Tensor:
    """[B, T], nats: log p of each token under the policy; zero after a response.

    Arguments are those of `response_kl`.
    """

    def logprobs(rows: TokenBatch) -> Tensor:
        found: Tensor = policy(rows, temperature=temperature, sampled=True).logp
        return found

    return _token_values(responses, logprobs, policy, ranks, max_tokens)


@phase("prepare")
def _token_values(
    responses: Sequence[Response],
    compute: Callable[[TokenBatch], Tensor],
    policy: Policy,
    ranks: Ranks,
    max_tokens: int,
) -> Tensor:
    """[B, T] fp32 on the CPU: values of each response's tokens, computed without gradients."""
    examples = response_examples([[response] for response in responses])
    own = micro_batches(examples, range(len(responses)), max_tokens)
    sizes = [len(response.token_ids) for response in responses]
    found = torch.zeros(len(responses), max(sizes, default=1))
    with torch.no_grad(), without_dropout(policy):
        for rows in equal_passes([one.to(policy.device) for one in own], ranks, policy.device):
            values = compute(rows).float().cpu()
            if rows.is_filler:
                continue
            parts = values.split([sizes[k] for k in rows.example_ids])
            for k, part in zip(rows.example_ids, parts, strict=True):
                found[k, : len(part)] = part
    return found
