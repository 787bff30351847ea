"""What pretraining and supervised fine-tuning share: maximum likelihood on examples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rlhf_cli.data.batches import Rows
from rlhf_cli.data.examples import Loaded
from rlhf_cli.data.loader import eval_batches
from rlhf_cli.losses.likelihood import nll_loss
from rlhf_cli.losses.reduce import LossOutput, Term
from rlhf_cli.models.load import load_policy
from rlhf_cli.models.policy import Policy
from rlhf_cli.ranks import ALONE, Ranks
from rlhf_cli.stages.config import StageConfig
from rlhf_cli.stages.session import Session


def train_likelihood(
    cfg: StageConfig, out: Path, stage: str, records: tuple[type, ...]
) -> dict[str, Any]:
    """Train on every trained token of the examples, evaluate, save the result.

    Args:
        cfg: the whole configuration.
        out: the run folder.
        stage: names the shipped rows, and stands in errors.
        records: the record classes that the stage takes, the preferred first.

    Returns:
        What the manifest tells of the run.
    """
    run = Session(cfg, out, stage, records)
    policy = run.use(load_policy(cfg, run.tokenizer, run.ctx, run.new_tokens))

    def loss(rows: Rows) -> LossOutput:
        nll = nll_loss(policy(rows).logp)
        return LossOutput(terms={"nll": Term(nll.sum(), unit="tokens")})

    def evaluate(held_out: Loaded) -> dict[str, float]:
        return held_out_metrics(policy, held_out, run.max_tokens, run.ctx.ranks)

    return run.train(policy, loss, evaluate)


def held_out_metrics(
    policy: Policy, held_out: Loaded, max_tokens: int, ranks: Ranks = ALONE
) -> dict[str, float]:
    """Loss a token (nats), perplexity, accuracy of the likeliest token; for text, bits per byte."""
    examples, report = held_out
    nll, right, count = 0.0, 0.0, 0
    for rows in eval_batches(examples, max_tokens, ranks):
        out = policy(rows.to(policy.device), want=("logp", "top1"))
        nll += float(nll_loss(out.logp).double().sum())
        right += float(out.top1.sum()) if out.top1 is not None else 0.0
        count += len(rows.scored)
    nll, right, count = (sum(own) for own in zip(*ranks.gather((nll, right, count)), strict=True))
    loss = nll / count
    metrics = {"loss": loss, "perplexity": math.exp(min(loss, 700)), "accuracy": right / count}
    if report.text_bytes:
        metrics["bits_per_byte"] = nll / math.log(2) / report.text_bytes
    return metrics
