"""What pretraining and supervised fine-tuning share: maximum likelihood on examples."""

from __future__ import annotations

import contextlib
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf_cli.context import RunContext, open_context, say
from rlhf_cli.data.batches import Rows
from rlhf_cli.data.examples import Examples, Loaded
from rlhf_cli.data.loader import ExampleSource, eval_batches
from rlhf_cli.data.preview import show_first_example
from rlhf_cli.data.report import DataReport
from rlhf_cli.errors import ConfigError
from rlhf_cli.losses.likelihood import nll_loss
from rlhf_cli.losses.reduce import LossOutput, Term
from rlhf_cli.models.load import context_length, load_policy, recompute_activations
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.tokenizer import tokenizer_hash
from rlhf_cli.ranks import ALONE, Ranks
from rlhf_cli.stages.config import StageConfig
from rlhf_cli.stages.opening import open_rows
from rlhf_cli.train.artifact import save_model
from rlhf_cli.train.budget import micro_batch_tokens
from rlhf_cli.train.loop import RunResult, fit
from rlhf_cli.train.machinery import agree_with, find_checkpoint
from rlhf_cli.train.tracking import Trackers


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
    ctx = open_context(cfg.train.precision, cfg.seed, out)
    opened = open_rows(cfg, ctx, stage, records)
    tokenizer, (examples, report), held_out = opened.tokenizer, opened.train, opened.held_out
    show_first_example(examples, tokenizer)
    policy = load_policy(cfg, tokenizer, ctx, opened.new_tokens)
    for loaded in filter(None, (opened.train, held_out)):
        _require_context(loaded[0], policy)
    if cfg.train.gradient_checkpointing:
        recompute_activations(policy)

    checkpoint = find_checkpoint(ctx.out, cfg.resume)
    machinery = agree_with(checkpoint, _machinery(cfg, policy, ctx, tokenizer, report))
    result = _fit(cfg, ctx, policy.train(), examples, held_out, checkpoint, machinery)

    ends = end_tokens(examples, tokenizer)
    trained_on = "chat" if report.templated else "text"
    ctx.ranks.on_main(lambda: save_model(policy, tokenizer, ends, trained_on, cfg, ctx, result))
    say(f"result: {ctx.out / 'model'}")
    return _summary(ctx, result, report, held_out, machinery)


def _fit(
    cfg: StageConfig,
    ctx: RunContext,
    policy: Policy,
    examples: Examples,
    held_out: Loaded | None,
    checkpoint: Path | None,
    machinery: dict[str, Any],
) -> RunResult:
    tokens = cfg.train.micro_batch_tokens or machinery["micro_batch_tokens"]
    source = ExampleSource(examples, cfg.data, cfg.train, cfg.seed, tokens, ctx.ranks)
    say(f"steps: {source.total_steps} of {cfg.train.batch_size} examples; {tokens} tokens a pass")

    def loss(rows: Rows) -> LossOutput:
        nll = nll_loss(policy(rows).logp)
        return LossOutput(terms={"nll": Term(nll.sum(), unit="tokens")})

    def evaluate() -> dict[str, float]:
        return held_out_metrics(policy, *held_out, tokens, ctx.ranks) if held_out else {}

    names = cfg.log.trackers if ctx.ranks.main else []
    with contextlib.closing(Trackers(names, ctx.out, asdict(cfg))) as trackers:
        return fit(
            policy,
            source,
            loss,
            cfg.train,
            ctx,
            lr=cfg.lr,
            where=examples.where,
            evaluate=evaluate if held_out else None,
            checkpoint=checkpoint,
            machinery=machinery,
            trackers=trackers,
        )


def held_out_metrics(
    policy: Policy,
    examples: Examples,
    report: DataReport,
    max_tokens: int,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Loss a token (nats), perplexity, accuracy of the likeliest token; for text, bits per byte."""
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


def _machinery(
    cfg: StageConfig, policy: Policy, ctx: RunContext, tokenizer: Any, report: DataReport
) -> dict[str, Any]:
    """What a result depends on beside the configuration, to the last bit."""
    found = cfg.train.micro_batch_tokens or micro_batch_tokens(
        policy,
        policy.model.config.get_text_config(),
        ctx.device,
        ctx.compute,
        cfg.train.gradient_checkpointing,
        ctx.ranks.size,
    )
    return {
        "micro_batch_tokens": min(ctx.ranks.gather(found)),  # GPUs of one run may differ
        "processes": ctx.ranks.size,
        "threads": torch.get_num_threads(),
        "attention": policy.model.config._attn_implementation,
        "logprobs": policy.implementation.name,
        "compute": ctx.compute_name,
        "tokenizer": tokenizer_hash(tokenizer),
        "data": report.sha256,
    }


def end_tokens(examples: Examples, tokenizer: Any) -> list[int]:
    """Tokens that end what was trained: the tokenizer's own, and a template's end of a turn."""
    first_row = examples.trained[: examples.row_starts[1]]
    last = int(examples.tokens[np.flatnonzero(first_row)[-1]])
    special = last in tokenizer.added_tokens_decoder
    return list(dict.fromkeys([tokenizer.eos_token_id, *([last] if special else [])]))


def _require_context(examples: Examples, policy: Policy) -> None:
    longest = context_length(policy.model)
    lengths = np.diff(examples.row_starts)
    if longest and lengths.max() > longest:
        raise ConfigError(
            f"data.max_length: {(lengths > longest).sum()} rows are longer than the model's "
            f"{longest} positions (the longest has {lengths.max()} tokens). "
            f"Try data.max_length={longest}"
        )


def _summary(
    ctx: RunContext,
    result: RunResult,
    report: DataReport,
    held_out: Loaded | None,
    machinery: dict[str, Any],
) -> dict[str, Any]:
    return {
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "processes": ctx.ranks.size,
        "peak_memory_bytes": sum(result.peak_memory),
        "peak_memory_bytes_by_rank": result.peak_memory,
        "device": str(ctx.device),
        "machinery": machinery,
        "data": report.to_dict(),
        "held_out_data": held_out[1].to_dict() if held_out else None,
        "before": result.before,
        "after": result.after,
    }
