"""What pretraining and supervised fine-tuning share: maximum likelihood on examples."""

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
from rlhf_cli.data.examples import Examples, Loaded
from rlhf_cli.data.records.record import ChatRecord, PromptCompletionRecord, TextRecord
from rlhf_cli.distributed import ALONE, Ranks
from rlhf_cli.evaluation.bootstrap import Values, ratio
from rlhf_cli.evaluation.measured import Measured, share_of_parts
from rlhf_cli.losses.likelihood import load_balancing_loss, nll_loss
from rlhf_cli.losses.reduce import LossOutput, Term
from rlhf_cli.models.load import LoadInputs, load_frozen, load_policy
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.router import balancing_loss_coef
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.stages.config import StageConfig
from rlhf_cli.stages.held_out import Columns, Evaluation, numbers_of_rows, open_held_out
from rlhf_cli.stages.session import Session
from rlhf_cli.train.measure import row_values
from rlhf_cli.train.row_loss import RowLoss, RowValues
from rlhf_cli.train.sequence import row_sums, row_tokens
from rlhf_cli.train.update import Loss

RECORDS: tuple[type, ...] = (TextRecord, PromptCompletionRecord, ChatRecord)


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
    policy = run.use(load_policy(cfg, LoadInputs(run.tokenizer, run.ctx, run.new_tokens)))
    coefficient = balancing_loss_coef(policy.model)

    def token_loss(rows: TokenBatch) -> LossOutput:
        nll = nll_loss(policy(rows).logp)
        return LossOutput(terms={"nll": Term(nll.sum(), unit="tokens")})

    loss: Loss = balanced_loss(policy, coefficient) if coefficient else token_loss

    def evaluate(held_out: Loaded) -> dict[str, float]:
        return held_out_metrics(policy, held_out, run.max_tokens, run.ctx.ranks)

    return run.train(policy, loss, evaluate)


def balanced_loss(policy: Policy, coefficient: float) -> RowLoss:
    """Maximum likelihood and the balancing loss of a mixture of experts, over a whole step.

    Args:
        policy: a mixture of experts that gives its routers' logits.
        coefficient: weight of the balancing loss.
    """

    def values(rows: TokenBatch) -> RowValues:
        out = policy(rows, want=("logp", "router"))
        assert out.router is not None
        nll = row_sums(nll_loss(out.logp), rows)
        return {"nll": nll, **vars(out.router)}

    def of(found: RowValues) -> LossOutput:
        balance = load_balancing_loss(found["chosen"], found["share"], found["tokens"])
        rows = len(found["nll"])
        terms = {
            "nll": Term(found["nll"].sum(), unit="tokens"),
            "balance": Term(balance * rows, unit="rows", weight=coefficient),
        }
        return LossOutput(terms, {"router/balance_loss": (balance.detach(), 1)})

    return RowLoss(values, of, couples=True)


def held_out_metrics(
    policy: Policy, held_out: Loaded, max_tokens: int, ranks: Ranks = ALONE
) -> dict[str, float]:
    """Loss a token (nats), perplexity, accuracy of the likeliest token; for text, bits per byte."""
    examples, report = held_out
    found, _ = row_values(token_sums(policy), examples, max_tokens, policy.device, ranks)
    columns = {name: column.numpy() for name, column in found.items()}
    size = np.full(len(columns["nll"]), report.text_bytes / len(columns["nll"]))
    return {measured.metric: measured.value for measured in likelihood(columns, size)}


def open_evaluation(cfg: StageConfig, stage: str) -> Evaluation:
    """Open the held-out rows; measures a saved model by what each of them gives.

    Args:
        cfg: of the run that made the model; `model.path` is its result, `data.eval` the rows: raw
            text, responses or chats.
        stage: names the shipped rows, and stands in errors.
    """
    tokenizer = load_tokenizer(cfg.model)
    loaded = open_held_out(cfg, stage, tokenizer, RECORDS)
    return partial(_measure, cfg, tokenizer, loaded)


def _measure(cfg: StageConfig, tokenizer: Any, loaded: Loaded, ctx: RunContext) -> list[Measured]:
    examples, report = loaded
    policy = load_frozen(Policy, cfg, LoadInputs(tokenizer, ctx))
    columns = numbers_of_rows(token_sums(policy), policy, examples, cfg, ctx)
    size = text_bytes(examples, report.text_bytes, tokenizer)
    return likelihood(columns, size)


def token_sums(policy: Policy) -> Callable[[TokenBatch], RowValues]:
    """What a row's scored tokens add up to: nats, tokens, and those that are the likeliest."""

    def values(rows: TokenBatch) -> RowValues:
        out = policy(rows, want=("logp", "top1"))
        assert out.top1 is not None
        return {
            "nll": row_sums(nll_loss(out.logp).double(), rows),
            "right": row_sums(out.top1.double(), rows),
            "tokens": row_tokens(rows),
        }

    return values


def likelihood(columns: Columns, size: Values) -> list[Measured]:
    """Metrics of a language model.

    Args:
        columns: `nll` (nats), `right` and `tokens` of each row, [R] each.
        size: [R], bytes of text in each row; zeros for what is no raw text.
    """
    nll, tokens = columns["nll"], columns["tokens"]
    found = [
        Measured("loss", (nll, tokens), ratio),
        Measured("perplexity", (nll, tokens), perplexity),
        share_of_parts("accuracy", columns["right"], tokens),
    ]
    return [*found, Measured("bits_per_byte", (nll, size), bits)] if size.any() else found


def perplexity(nll: Values, tokens: Values) -> Any:
    """[...]: e to the loss a token."""
    with np.errstate(over="ignore"):  # infinite beyond a loss of 709 nats
        return np.exp(ratio(nll, tokens))


def bits(nll: Values, size: Values) -> Any:
    """[...]: nats of text as bits of each of its bytes."""
    return ratio(nll, size) / math.log(2)


def text_bytes(examples: Examples, total: int, tokenizer: Any) -> Values:
    """[R]: how many of all bytes of raw text are in each row, by what its tokens spell.

    Args:
        examples: a document may be cut into several rows.
        total: bytes of all documents; 0 for what is no raw text.
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
