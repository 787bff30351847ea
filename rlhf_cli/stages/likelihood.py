"""Maximum likelihood: training and evaluation of pretrain and sft."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_cli.context import RunContext
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.dataset import LoadedExamples
from rlhf_cli.data.examples import Examples
from rlhf_cli.distributed.ranks import SINGLE_PROCESS, Ranks
from rlhf_cli.evaluation.intervals import Measurement, Values, pooled_proportion, ratio_of_sums
from rlhf_cli.losses.likelihood import load_balancing_loss, nll_loss
from rlhf_cli.losses.reduction import LossOutput, LossTerm
from rlhf_cli.models.load import LoadInputs, load_frozen, load_policy
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.router import balancing_loss_coef
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.stages.config import StageConfig
from rlhf_cli.stages.evaluation import Columns, Evaluation, evaluate_rows, load_held_out
from rlhf_cli.stages.prepare_data import StageData, load_stage_data
from rlhf_cli.stages.records import LIKELIHOOD_RECORDS
from rlhf_cli.stages.training import open_run, prepare_training, train_and_save
from rlhf_cli.train.evaluation import (
    HeldOutMetrics,
    compute_row_values,
    from_measurements,
)
from rlhf_cli.train.row_loss import RowLoss, RowValues, row_sums, row_tokens
from rlhf_cli.train.update import Loss


def train_likelihood(
    cfg: StageConfig, out: Path, stage: str, records: tuple[type, ...]
) -> dict[str, Any]:
    """Run pretrain or sft: train on the trained tokens, evaluate, save the result.

    Args:
        cfg: the whole configuration.
        out: the run folder.
        stage: names the shipped rows, and stands in errors.
        records: record classes that the stage reads, the preferred first.

    Returns:
        Summary of the run for the manifest.
    """
    ctx = open_run(cfg, out)
    data = load_stage_data(cfg, ctx, stage, records)
    policy = load_policy(cfg, LoadInputs(data.tokenizer, ctx, data.new_tokens))
    data.require_fits(policy)
    plan = prepare_training(cfg, ctx, policy, data)
    coefficient = balancing_loss_coef(policy.model)
    loss = balanced_loss(policy, coefficient) if coefficient else likelihood_loss(policy)

    def evaluate() -> HeldOutMetrics:
        return held_out_metrics(policy, data, plan.micro_batch_tokens, ctx.ranks)

    return train_and_save(plan, policy, loss, data, evaluate=evaluate)


def likelihood_loss(policy: Policy) -> Loss:
    """Negative log-likelihood of every trained token."""

    def loss(rows: TokenBatch) -> LossOutput:
        nll = nll_loss(policy(rows).logp)
        return LossOutput(terms={"nll": LossTerm(nll.sum(), unit="tokens")})

    return loss


def balanced_loss(policy: Policy, coefficient: float) -> RowLoss:
    """Negative log-likelihood plus the load balancing loss of a mixture of experts.

    Args:
        policy: a mixture of experts that returns its router logits.
        coefficient: weight of the load balancing loss.
    """

    def values(rows: TokenBatch) -> RowValues:
        out = policy(rows, want=("logp", "router"))
        assert out.router is not None
        nll = row_sums(nll_loss(out.logp), rows)
        return {"nll": nll, **vars(out.router)}

    def loss(found: RowValues) -> LossOutput:
        balance = load_balancing_loss(found["chosen"], found["share"], found["tokens"])
        rows = len(found["nll"])
        terms = {
            "nll": LossTerm(found["nll"].sum(), unit="tokens"),
            "balance": LossTerm(balance * rows, unit="rows", weight=coefficient),
        }
        return LossOutput(terms, {"router/balance_loss": (balance.detach(), 1)})

    return RowLoss(values, loss, couples_rows=True)


def held_out_metrics(
    policy: Policy, data: StageData, max_tokens: int, ranks: Ranks = SINGLE_PROCESS
) -> HeldOutMetrics:
    """Loss per token (nats), perplexity, top-1 accuracy; for raw text also bits per byte."""
    assert data.held_out is not None
    assert data.held_out_report is not None
    values = token_sums(policy)
    found, _ = compute_row_values(values, data.held_out, max_tokens, policy.device, ranks)
    columns = {name: column.numpy() for name, column in found.items()}
    rows = len(columns["nll"])
    size = np.full(rows, data.held_out_report.text_bytes / rows)
    return from_measurements(likelihood(columns, size))


def open_likelihood_evaluation(cfg: StageConfig, stage: str) -> Evaluation:
    """Load the held-out rows; the evaluation computes a saved model's likelihood metrics.

    Args:
        cfg: configuration of the run; `model.path` is its result, `data.eval` the rows: raw text,
            responses or chats.
        stage: names the shipped rows, and stands in errors.
    """
    tokenizer = load_tokenizer(cfg.model)
    loaded = load_held_out(cfg, stage, tokenizer, LIKELIHOOD_RECORDS)
    return partial(_measure, cfg, tokenizer, loaded)


def _measure(
    cfg: StageConfig, tokenizer: Any, loaded: LoadedExamples, ctx: RunContext
) -> list[Measurement]:
    examples, report = loaded
    policy = load_frozen(Policy, cfg, LoadInputs(tokenizer, ctx))
    columns = evaluate_rows(token_sums(policy), policy, examples, cfg, ctx)
    size = text_bytes(examples, report.text_bytes, tokenizer)
    return likelihood(columns, size)


def token_sums(policy: Policy) -> Callable[[TokenBatch], RowValues]:
    """Function that sums over each row: NLL (nats), tokens, and correct top-1 predictions."""

    def values(rows: TokenBatch) -> RowValues:
        out = policy(rows, want=("logp", "top1"))
        assert out.top1 is not None
        return {
            "nll": row_sums(nll_loss(out.logp).double(), rows),
            "right": row_sums(out.top1.double(), rows),
            "tokens": row_tokens(rows),
        }

    return values


def likelihood(columns: Columns, size: Values) -> list[Measurement]:
    """Loss, perplexity, accuracy and bits per byte of a language model.

    Args:
        columns: `nll` (nats), `right` and `tokens` of each row, [R] each.
        size: [R], bytes of raw text in each row; zeros for other rows.
    """
    nll, tokens = columns["nll"], columns["tokens"]
    found = [
        Measurement("loss", (nll, tokens), ratio_of_sums),
        Measurement("perplexity", (nll, tokens), perplexity),
        pooled_proportion("accuracy", columns["right"], tokens),
    ]
    return [*found, Measurement("bits_per_byte", (nll, size), bits)] if size.any() else found


def perplexity(nll: Values, tokens: Values) -> Any:
    """[...]: exp of the loss per token."""
    with np.errstate(over="ignore"):  # infinite beyond a loss of 709 nats
        return np.exp(ratio_of_sums(nll, tokens))


def bits(nll: Values, size: Values) -> Any:
    """[...]: NLL in bits per byte of text."""
    return ratio_of_sums(nll, size) / math.log(2)


def text_bytes(examples: Examples, total: int, tokenizer: Any) -> Values:
    """[R]: bytes of raw text in each row, in proportion to its decoded length.

    Args:
        examples: a document may be cut into several rows.
        total: bytes of all documents; 0 for other rows.
        tokenizer: decodes the tokens.
    """
    bounds = examples.row_starts
    if not total:
        return np.zeros(len(bounds) - 1)
    rows = [examples.tokens[start:end].tolist() for start, end in pairwise(bounds)]
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    spelt = np.array([len(text.encode()) for text in texts], np.float64)
    size: Values = total * spelt / spelt.sum()
    return size
