"""Online DPO on the prompts of a file."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from rlhf_cli.console import logger
from rlhf_cli.context import RunContext
from rlhf_cli.data.report import pluralize
from rlhf_cli.models.load import LoadInputs, load_policy
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.sharding import gathered
from rlhf_cli.rewards.rewards import load_combined_reward
from rlhf_cli.rollout.cuda_graphs import capture, require_cuda
from rlhf_cli.rollout.probe import require_cuda_graphs
from rlhf_cli.rollout.response import Response
from rlhf_cli.rollout.stopping import add_end_token, end_token_ids
from rlhf_cli.stages.dpo.config import DPOConfig
from rlhf_cli.stages.dpo.loss import preference_loss, reference_state
from rlhf_cli.stages.dpo.online import OnlineSource, with_kl
from rlhf_cli.stages.records import rows_stage
from rlhf_cli.stages.reference import held_reference, load_reference
from rlhf_cli.stages.rollouts.engine import create_engine
from rlhf_cli.stages.rollouts.held_out import HeldOutPrompts, fixed_samples
from rlhf_cli.stages.rollouts.prompts import PromptFileData, load_prompt_data
from rlhf_cli.stages.rollouts.rows import response_kl, response_logprobs
from rlhf_cli.stages.rollouts.worker import create_worker
from rlhf_cli.stages.training import fit_and_save, open_run, prepare_training
from rlhf_cli.train.evaluation import HeldOutMetrics
from rlhf_cli.train.task import TrainingTask


def run_online(cfg: DPOConfig, out: Path) -> dict[str, Any]:
    """Generate responses, rank them by their scores, and train on the pairs."""
    ctx = open_run(cfg, out)
    data = load_prompt_data(cfg, rows_stage("dpo", cfg))
    policy, tokenizer = _load_policy(cfg, ctx, data), data.tokenizer
    reference = load_reference(cfg, policy, data, ctx)
    plan = prepare_training(cfg, ctx, policy, data)
    tokens = plan.micro_batch_tokens
    rewards = load_combined_reward(cfg.reward, tokenizer, ctx, tokens, policy)
    compute_kl = partial(
        response_kl,
        policy=policy,
        reference=reference,
        ranks=ctx.ranks,
        max_tokens=tokens,
        temperature=cfg.sampling.temperature,
    )
    with contextlib.closing(create_engine(cfg, policy, data, plan, "dpo")) as engine:
        parts = engine, tokenizer, policy
        worker = create_worker(cfg, data.prompts, *parts, samples=cfg.samples_per_prompt)
        compute = partial(_logprobs, policy, ctx, tokens)
        source = OnlineSource(cfg, worker, rewards, compute_kl, compute, ctx, tokens)
        _log_step_counts(cfg, source.total_steps)
        held_out = None
        if data.held_out:
            single = create_worker(cfg, data.held_out, *parts, samples=1)
            held_out = HeldOutPrompts(single, rewards, compute_kl, ctx.ranks)
        rows = held_reference(reference, cfg.ld_alpha)
        loss = preference_loss(cfg, policy, rows)
        task = TrainingTask(
            policy=policy,
            source=source,
            # with ld_alpha the values are weighted, and their difference is no log-ratio
            loss=with_kl(loss) if cfg.ld_alpha == 1 else loss,
            locate=source.location,
            evaluate=partial(_evaluate, held_out, source, cfg.beta) if held_out else None,
            state=reference_state(cfg, policy, rows),
            samples=fixed_samples(policy, ctx, cfg.log.sample_prompts, worker, held_out),
        )
        return fit_and_save(plan, task, end_token_ids(policy.model, tokenizer))


def _load_policy(cfg: DPOConfig, ctx: RunContext, data: PromptFileData) -> Policy:
    require_cuda(cfg.sampling, ctx.device)
    policy = load_policy(cfg, LoadInputs(data.tokenizer, ctx))
    add_end_token(policy.model, data.tokenizer, data.encoder.turn_end)
    data.require_fits(policy)
    if cfg.sampling.cuda_graphs:
        with gathered(policy):
            require_cuda_graphs(policy.model, capture)
    return policy


def _logprobs(
    policy: Policy, ctx: RunContext, tokens: int, responses: Sequence[Response], temperature: float
) -> Tensor:
    return response_logprobs(
        responses, policy, ctx.ranks, max_tokens=tokens, temperature=temperature
    )


def _evaluate(held_out: HeldOutPrompts, source: OnlineSource, beta: float) -> HeldOutMetrics:
    """Evaluate the current policy on held-out prompts.

    The loss is minus DPO's objective: the score less beta times the KL (arXiv:2305.18290, eq. 3).
    """
    source.pipeline.hand_over()
    return held_out.evaluate(beta)


def _log_step_counts(cfg: DPOConfig, total: int) -> None:
    logger.info(
        f"steps: {pluralize(total, 'step')} of {pluralize(cfg.train.batch_size, 'prompt')}, "
        f"{cfg.samples_per_prompt} responses each, the best and the worst of which are a pair"
    )
