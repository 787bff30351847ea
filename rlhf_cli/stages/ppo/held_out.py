"""How a policy does on held-out prompts: responses drawn there, scored, and measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_cli.distributed import Ranks
from rlhf_cli.stages.ppo.learning import Teacher
from rlhf_cli.stages.ppo.rollout import Author


@dataclass(frozen=True)
class HeldOut:
    """A response to each held-out prompt, measured: [n] each, in the order of the ranks.

    Attributes:
        score: what it was given.
        kl: nats, of the whole response from the reference.
        response_length: tokens.
        eos_fraction: 1 where it ended by itself, else 0.
    """

    score: Tensor
    kl: Tensor
    response_length: Tensor
    eos_fraction: Tensor


def answer(author: Author, teacher: Teacher, ranks: Ranks) -> HeldOut:
    """Answer the prompts, always with the same draws.

    Args:
        author: of the held-out prompts.
        teacher: measures the KL.
        ranks: share the prompts.
    """
    own = range(ranks.rank, len(author.prompts), ranks.world_size)
    responses = author.write(own, own, step=0)
    found = (
        author.score(responses, observe=False).total,
        teacher.kl_of(responses),
        torch.tensor([float(len(one.tokens)) for one in responses]),
        torch.tensor([float(one.finished) for one in responses]),
    )
    return HeldOut(*(ranks.all_gather_concat(values).double() for values in found))


def evaluate(author: Author, teacher: Teacher, ranks: Ranks) -> dict[str, float]:
    """The means of `answer`, and `loss`: `kl_coef` times the KL less the score, which falls."""
    found = answer(author, teacher, ranks)
    means = {name: float(values.mean()) for name, values in vars(found).items()}
    return {"loss": author.cfg.kl_coef * means["kl"] - means["score"], **means}
