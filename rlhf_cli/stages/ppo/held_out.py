"""How a policy does on held-out prompts: responses drawn there, scored, and measured."""

from __future__ import annotations

import torch

from rlhf_cli.ranks import Ranks
from rlhf_cli.stages.ppo.learning import Teacher
from rlhf_cli.stages.ppo.rollout import Author


def evaluate(author: Author, teacher: Teacher, ranks: Ranks) -> dict[str, float]:
    """Means over a response to each held-out prompt; the draws are the same each time.

    Args:
        author: of the held-out prompts.
        teacher: measures the KL.
        ranks: share the prompts.

    Returns:
        `score`, `kl` (nats from the reference), `response_length` (tokens), `eos_fraction`, and
        `loss`: minus the score less `kl_coef` times the KL, which training lowers.
    """
    own = range(ranks.rank, len(author.prompts), ranks.size)
    responses = author.write(own, own, step=0)
    score = author.score(responses, observe=False).total
    by_row = torch.stack(
        [
            score,
            teacher.kl_of(responses),
            torch.tensor([float(len(one.tokens)) for one in responses]),
            torch.tensor([float(one.finished) for one in responses]),
        ],
        1,
    )
    means = torch.cat(ranks.gather(by_row)).double().mean(0).tolist()
    found = dict(zip(("score", "kl", "response_length", "eos_fraction"), means, strict=True))
    return {"loss": author.cfg.kl_coef * found["kl"] - found["score"], **found}
