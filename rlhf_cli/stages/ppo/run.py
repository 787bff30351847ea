"""Proximal policy optimization (PPO) on the prompts of a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rlhf_cli.console import logger
from rlhf_cli.context import RunContext, memory_device
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.prompts import (
    PromptSet,
    encode_prompts,
    load_held_out_prompts,
    load_training_prompts,
)
from rlhf_cli.data.report import pluralize
from rlhf_cli.errors import ConfigError
from rlhf_cli.memory.parts import Rows, Settings
from rlhf_cli.memory.rollout import slots_of
from rlhf_cli.memory.training import fit_slots
from rlhf_cli.models.context_length import context_length
from rlhf_cli.models.sharding import gathered_bytes, is_sharded, reshard
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.models.vocabulary import require_embedded_ids
from rlhf_cli.models.wrapper import ModelWrapper
from rlhf_cli.rewards.rewards import CombinedReward, load_combined_reward
from rlhf_cli.rollout.engine import DEFAULT_BATCH_SIZE
from rlhf_cli.rollout.response import Response
from rlhf_cli.rollout.stopping import end_token_ids
from rlhf_cli.stages.fixed_samples import FixedSamples, prompts_of_set
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.ppo.evaluate import evaluate
from rlhf_cli.stages.ppo.minibatches import PTX_MASK
from rlhf_cli.stages.ppo.rollout_source import RolloutSource
from rlhf_cli.stages.ppo.rollout_worker import RolloutWorker
from rlhf_cli.stages.ppo.setup import (
    PPOComponents,
    PPOModels,
    PromptData,
    build_components,
    load_models,
    load_ptx_data,
    open_ppo_run,
)
from rlhf_cli.stages.ppo.value_model import memory_table
from rlhf_cli.stages.prepare_data import log_max_length
from rlhf_cli.stages.tokenizers import load_prompt_encoder
from rlhf_cli.stages.training import TrainingPlan, fit_and_save, prepare_training
from rlhf_cli.train.loop import Evaluate, TrainingTask

EncodedPrompts = tuple[PromptSet, list[list[int]]]
"""Prompts and the tokens of each."""


@dataclass(frozen=True, kw_only=True)
class PromptFileData(PromptData):
    """Tokenizer and encoded prompts of `rlhf ppo`.

    Attributes:
        prompts: training prompts and their tokens.
        held_out: held-out prompts and their tokens, or None.
        max_new_tokens: maximum tokens of a response; with its prompt it must fit the positions.
    """

    prompts: EncodedPrompts
    held_out: EncodedPrompts | None
    max_new_tokens: int

    def require_fits(self, model: ModelWrapper, name: str = "model") -> None:
        """Check that every prompt leaves room for a response in a model's positions."""
        room, new = context_length(model.model), self.max_new_tokens
        sets = [self.prompts, *([self.held_out] if self.held_out else [])]
        for found, tokens in sets:
            require_embedded_ids(tokens, model.model, found.locations.__getitem__, name)
        longest = max(len(ids) for _, tokens in sets for ids in tokens)
        if room and longest + new > room:
            raise ConfigError(
                f"data.max_length: the longest prompt has {longest} tokens and a response up to "
                f"{new}, more than the {name}'s {room} positions. Try data.max_length={room}"
            )


def prepare(cfg: PPOConfig, out: Path) -> None:
    """Tokenize the rows of `ptx_data` before several processes start."""
    if cfg.ptx_coef:
        load_ptx_data(cfg, load_tokenizer(cfg.model), cached_only=False)


def run(cfg: PPOConfig, out: Path) -> dict[str, Any]:
    """Generate responses, score them, and train the policy towards higher scores."""
    ctx = open_ppo_run(cfg, out)
    data = load_prompts(cfg)
    models = load_models(cfg, ctx, data)
    plan = prepare_training(cfg, ctx, models.policy, data)
    components = build_components(cfg, plan, models)
    policy, tokenizer = models.policy, data.tokenizer
    rewards = load_combined_reward(cfg.reward, tokenizer, ctx, plan.micro_batch_tokens, policy)
    log_memory(models, rewards, ctx)
    slots = choose_slots(cfg, data, plan)
    worker = RolloutWorker(cfg, *data.prompts, policy, rewards, tokenizer, ctx.ranks, slots)
    source = RolloutSource(cfg, worker, components.updates, ctx)
    log_step_counts(cfg, source.total_steps)
    held_out = _held_out_worker(cfg, ctx, data, worker) if data.held_out else None
    task = TrainingTask(
        policy=policy,
        source=source,
        loss=components.loss,
        locate=partial(_locate, components, data.prompts[0]),
        evaluate=_evaluation(ctx, held_out, components) if held_out else None,
        samples=_fixed_samples(ctx, worker, held_out),
    )
    return fit_and_save(plan, task, end_token_ids(policy.model, tokenizer))


def load_prompts(cfg: PPOConfig) -> PromptFileData:
    """Load tokenizer and prompts, and encode the prompts."""
    encoder = load_prompt_encoder(cfg)
    log_max_length(cfg)
    most = cfg.data.max_length - cfg.sampling.max_new_tokens

    def encode(found: PromptSet) -> EncodedPrompts:
        return encode_prompts(found, encoder, most, cfg.data.truncation)

    prompts = encode(load_training_prompts(cfg.data, "ppo", cfg.seed))
    held_out = load_held_out_prompts(cfg.data, "ppo")
    encoded = encode(held_out) if held_out else None
    prompts[0].report.templated = encoder.used_template
    return PromptFileData(
        tokenizer=encoder.tokenizer,
        report=prompts[0].report,
        held_out_report=held_out.report if held_out else None,
        encoder=encoder,
        prompts=prompts,
        held_out=encoded,
        max_new_tokens=cfg.sampling.max_new_tokens,
    )


def _held_out_worker(
    cfg: PPOConfig, ctx: RunContext, data: PromptFileData, worker: RolloutWorker
) -> RolloutWorker:
    """Generates one response to each held-out prompt."""
    assert data.held_out is not None
    one = replace(cfg, samples_per_prompt=1, rollout_logprobs="recompute")
    return RolloutWorker(
        one,
        *data.held_out,
        worker.policy,
        worker.rewards,
        data.tokenizer,
        ctx.ranks,
        worker.slots,
    )


def _evaluation(ctx: RunContext, held_out: RolloutWorker, components: PPOComponents) -> Evaluate:
    """Evaluation on held-out prompts."""
    return lambda: evaluate(held_out, components.experience_maker, ctx.ranks)


def _fixed_samples(
    ctx: RunContext, training: RolloutWorker, held_out: RolloutWorker | None
) -> FixedSamples | None:
    """The prompts that the policy answers at each evaluation.

    Responses to held-out prompts are scored too. Others are not: a reward sees nothing of training
    prompts but their rollouts.
    """
    worker = held_out or training
    count = worker.cfg.log.sample_prompts
    if not count:
        return None
    policy = worker.policy
    prompts = prompts_of_set(worker.prompt_text, worker.prompt_ids, policy, count)

    def score(responses: Sequence[Response]) -> Tensor:
        return worker.score(responses, observe=False).total

    scored = score if held_out else None
    return FixedSamples(ctx.out, policy, worker.tokenizer, prompts, ctx.ranks, scored)


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


def choose_slots(cfg: PPOConfig, data: PromptFileData, plan: TrainingPlan) -> int:
    """Choose how many responses are decoded at once: 64, or as many as fit; print fewer."""
    if cfg.max_num_seqs:
        return cfg.max_num_seqs
    device = memory_device(plan.ctx.device, plan.ctx.compute, cfg.device_memory)
    sets = [data.prompts, *([data.held_out] if data.held_out else [])]
    longest = max(len(ids) for _, tokens in sets for ids in tokens)
    rows = replace(Rows.of_config(cfg), longest_prompt=longest)
    settings = Settings("ppo", cfg, rows, device, plan.ctx.ranks.world_size)
    try:
        fitting = fit_slots(settings, plan.micro_batch_tokens)
    except ConfigError:  # a model that the memory model cannot count
        return DEFAULT_BATCH_SIZE
    if fitting >= slots_of(cfg, plan.ctx.ranks.world_size):
        return DEFAULT_BATCH_SIZE
    logger.info(f"rollout: {fitting} responses at once; the KV cache of more does not fit")
    return fitting


def log_memory(models: PPOModels, rewards: CombinedReward, ctx: RunContext) -> None:
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
    if is_sharded(models.policy):
        size = gathered_bytes(models.policy, ctx.compute)
        logger.info(
            f"rollout: while it generates, each process holds all weights of the policy in "
            f"{ctx.compute_name}, {size / 1e6:,.1f} MB"
        )
