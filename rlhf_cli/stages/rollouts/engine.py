"""The engine of a run: servers, or this process with a number of slots that fits."""

from __future__ import annotations

from dataclasses import replace

from rlhf_cli.console import logger
from rlhf_cli.context import memory_device
from rlhf_cli.errors import ConfigError
from rlhf_cli.memory.parts import Rows, Settings
from rlhf_cli.memory.rollout import slots_of
from rlhf_cli.memory.training import fit_slots
from rlhf_cli.models.policy import Policy
from rlhf_cli.rollout.engine import DEFAULT_BATCH_SIZE
from rlhf_cli.rollout.engines import Engine, LocalEngine
from rlhf_cli.rollout.server.open import open_engine
from rlhf_cli.stages.rollouts.config import RolloutSettings
from rlhf_cli.stages.rollouts.prompts import PromptFileData
from rlhf_cli.stages.training import TrainingPlan


def create_engine(
    cfg: RolloutSettings, policy: Policy, data: PromptFileData, plan: TrainingPlan, stage: str
) -> Engine:
    """Create the engine that generates a run's responses.

    Args:
        cfg: the whole configuration.
        policy: generates.
        data: the prompts.
        plan: device and tokens of a micro-batch.
        stage: the command.

    Raises:
        ConfigError: the servers cannot do what the configuration asks for.
        InferenceServerError: a server cannot be started or reached, or belongs to another run.
    """
    if cfg.rollout.is_used:
        length = data.longest_prompt + cfg.sampling.max_new_tokens
        return open_engine(cfg.rollout, policy, data.tokenizer, cfg.sampling, plan.ctx, length)
    slots = choose_slots(cfg, data, plan, stage)
    return LocalEngine(policy, data.tokenizer, cfg.sampling, slots)


def choose_slots(cfg: RolloutSettings, data: PromptFileData, plan: TrainingPlan, stage: str) -> int:
    """Choose how many responses are decoded at once: 64, or as many as fit; print fewer."""
    if cfg.max_num_seqs:
        return cfg.max_num_seqs
    device = memory_device(plan.ctx.device, plan.ctx.compute, cfg.device_memory)
    rows = replace(Rows.of_config(cfg), longest_prompt=data.longest_prompt)
    settings = Settings(stage, cfg, rows, device, plan.ctx.ranks.world_size)
    try:
        fitting = fit_slots(settings)
    except ConfigError:  # a model that the memory model cannot count
        return DEFAULT_BATCH_SIZE
    if fitting >= slots_of(cfg, plan.ctx.ranks.world_size):
        return DEFAULT_BATCH_SIZE
    logger.info(f"rollout: {fitting} responses at once; the KV cache of more does not fit")
    return fitting
