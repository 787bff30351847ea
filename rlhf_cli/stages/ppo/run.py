"""Proximal policy optimization (PPO) on the prompts of a file."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from rlhf_cli.console import logger
from rlhf_cli.context import RunContext
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.prompts import PromptSet
from rlhf_cli.data.report import pluralize
from rlhf_cli.models.sharding import gathered_bytes, is_sharded, reshard
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.rewards.rewards import CombinedReward, load_combined_reward
from rlhf_cli.rollout.stopping import end_token_ids
from rlhf_cli.stages.ppo.columns import PTX_MASK
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.ppo.setup import (
    PPOComponents,
    PPOModels,
    build_components,
    load_models,
    load_ptx_data,
    open_ppo_run,
)
from rlhf_cli.stages.ppo.source import PPOSource
from rlhf_cli.stages.ppo.value_model import memory_table
from rlhf_cli.stages.rollouts.engine import create_engine
from rlhf_cli.stages.rollouts.held_out import HeldOutPrompts, fixed_samples
from rlhf_cli.stages.rollouts.prompts import load_prompt_data
from rlhf_cli.stages.rollouts.worker import create_worker
from rlhf_cli.stages.training import fit_and_save, prepare_training
from rlhf_cli.train.evaluation import HeldOutMetrics
from rlhf_cli.train.task import TrainingTask


def prepare(cfg: PPOConfig, out: Path) -> None:
    """Tokenize the rows of `ptx_data` before several processes start."""
    if cfg.ptx_coef:
        load_ptx_data(cfg, load_tokenizer(cfg.model), cached_only=False)


def run(cfg: PPOConfig, out: Path) -> dict[str, Any]:
    """Generate responses, score them, and train the policy towards higher scores."""
    ctx = open_ppo_run(cfg, out)
    data = load_prompt_data(cfg, cfg.command)
    models = load_models(cfg, ctx, data)
    plan = prepare_training(cfg, ctx, models.policy, data)
    components = build_components(cfg, plan, models)
    policy, tokenizer = models.policy, data.tokenizer
    rewards = load_combined_reward(cfg.reward, tokenizer, ctx, plan.micro_batch_tokens, policy)
    log_memory(models, rewards, ctx, uses_server=cfg.rollout.is_used)
    with contextlib.closing(create_engine(cfg, policy, data, plan, cfg.command)) as engine:
        parts = engine, tokenizer, policy
        samples, logprobs = cfg.samples_per_prompt, cfg.reuses_logprobs
        worker = create_worker(cfg, data.prompts, *parts, samples=samples, logprobs=logprobs)
        source = PPOSource(cfg, worker, rewards, components.updates, ctx)
        log_step_counts(cfg, source.total_steps)
        held_out = None
        if data.held_out:
            single = create_worker(cfg, data.held_out, *parts, samples=1)
            compute_kl = components.experience_maker.compute_kl
            held_out = HeldOutPrompts(single, rewards, compute_kl, ctx.ranks)
        task = TrainingTask(
            policy=policy,
            source=source,
            loss=components.loss,
            locate=partial(_locate, components, data.prompts[0]),
            evaluate=partial(_evaluate, held_out, source, cfg.kl_coef) if held_out else None,
            samples=fixed_samples(policy, ctx, cfg.log.sample_prompts, worker, held_out),
            lr_factors=components.lr_factors,
        )
        return fit_and_save(plan, task, end_token_ids(policy.model, tokenizer))


def _evaluate(held_out: HeldOutPrompts, source: PPOSource, kl_coef: float) -> HeldOutMetrics:
    """Evaluate the current policy on held-out prompts."""
    source.pipeline.hand_over()
    return held_out.evaluate(kl_coef)


def _locate(components: PPOComponents, prompts: PromptSet, rows: TokenBatch) -> str:
    """`file:line` of the prompt of some rows, or of a row of `ptx_data`."""
    number = rows.example_ids[0]
    if PTX_MASK in rows.token_columns and components.ptx_data is not None:
        return f"ptx_data {components.ptx_data.location(number)}"
    return prompts.locations[number]


def log_step_counts(cfg: PPOConfig, total: int) -> None:
    """Print how many steps the run has, and what a step is."""
    logger.info(
        f"steps: {pluralize(total, 'rollout')} of {pluralize(cfg.train.batch_size, 'prompt')}, "
        f"{pluralize(cfg.samples_per_prompt, 'response')} each; "
        f"{pluralize(cfg.optimizer_steps, 'update')} a step"
    )


def log_memory(
    models: PPOModels, rewards: CombinedReward, ctx: RunContext, *, uses_server: bool
) -> None:
    """Print the memory of each model in this process, and what a rollout needs beside."""
    reshard(models.policy)
    reshard(models.reference.policy)
    found: dict[str, nn.Module] = {"policy": models.policy.model}
    found["reference"] = models.reference.policy.model
    if models.policy.value_model is not None:
        found["value model"] = models.policy.value_model
    for term in rewards.terms:
        model = getattr(term.scorer, "model", None)
        if isinstance(model, nn.Module):
            found[f"reward {term.name}"] = model
    for line in memory_table(found):
        logger.info(line)
    if is_sharded(models.policy) and not uses_server:
        size = gathered_bytes(models.policy, ctx.compute)
        logger.info(
            f"rollout: while it generates, each process holds all weights of the policy in "
            f"{ctx.compute_name}, {size / 1e6:,.1f} MB"
        )
