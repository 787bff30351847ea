"""Load PPO's models and build its loss and updater, for `rlhf ppo` and `PPOTrainer`."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_cli.console import muted
from rlhf_cli.context import RunContext
from rlhf_cli.data.dataset import load_examples
from rlhf_cli.data.examples import Examples
from rlhf_cli.data.loader import ExampleLoader
from rlhf_cli.models.load import LoadInputs, load_policy
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.sharding import gathered
from rlhf_cli.models.vocabulary import require_embedded
from rlhf_cli.preflight.models import peak_learning_rate
from rlhf_cli.rollout.cuda_graphs import capture, require_cuda
from rlhf_cli.rollout.probe import require_continuous_batching, require_cuda_graphs
from rlhf_cli.rollout.stopping import add_end_token
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.ppo.experience import ExperienceMaker
from rlhf_cli.stages.ppo.loss import PPOLoss
from rlhf_cli.stages.ppo.updates import PPOUpdater
from rlhf_cli.stages.ppo.value_model import attach_value_model, value_lr_factors
from rlhf_cli.stages.records import LIKELIHOOD_RECORDS
from rlhf_cli.stages.reference import ReferenceModel, load_reference
from rlhf_cli.stages.rollouts.prompts import PromptData
from rlhf_cli.stages.training import TrainingPlan, open_run

UNLIMITED_STEPS = 2**62
"""Steps of `ptx_data`, which is read for as long as there are updates."""


@dataclass(frozen=True)
class PPOModels:
    """The models of a PPO run.

    Attributes:
        policy: is trained; with its value model, where the configuration asks for one.
        reference: frozen; the KL penalty compares the policy with it.
    """

    policy: Policy
    reference: ReferenceModel


@dataclass(frozen=True)
class PPOComponents:
    """Loss, experience maker and updater, which turn scored responses into PPO updates.

    Attributes:
        loss: of an update's micro-batches.
        experience_maker: computes log-probs, values and advantages of responses.
        updates: minibatches of a rollout, and the KL coefficient.
        ptx_data: examples of `ptx_data`, or None.
        lr_factors: name -> factor of the learning rate of a parameter, where it is not 1.
    """

    loss: PPOLoss
    experience_maker: ExperienceMaker
    updates: PPOUpdater
    ptx_data: Examples | None
    lr_factors: dict[str, float]


def open_ppo_run(cfg: PPOConfig, out: Path) -> RunContext:
    """Open the run as other stages do, and check that CUDA graphs can be used if asked for."""
    ctx = open_run(cfg, out)
    require_cuda(cfg.sampling, ctx.device)
    return ctx


def load_models(cfg: PPOConfig, ctx: RunContext, data: PromptData) -> PPOModels:
    """Load policy, reference and value model.

    Raises:
        ModelError: one cannot be loaded, or does not fit the others.
        ConfigError: prompts and responses do not fit a model's positions.
    """
    policy = load_policy(cfg, LoadInputs(data.tokenizer, ctx))
    add_end_token(policy.model, data.tokenizer, data.encoder.turn_end)
    data.require_fits(policy)
    with gathered(policy):
        if cfg.reuses_logprobs:
            require_continuous_batching(policy.model, "rollout_logprobs", "reuse", "recompute")
        if cfg.sampling.cuda_graphs:
            require_cuda_graphs(policy.model, capture)
    reference = load_reference(cfg, policy, data, ctx)
    attach_value_model(cfg, policy, data.tokenizer, ctx)
    return PPOModels(policy, reference)


def build_components(cfg: PPOConfig, plan: TrainingPlan, models: PPOModels) -> PPOComponents:
    """Build PPO's loss, experience maker and updater."""
    ranks, tokens = plan.ctx.ranks, plan.micro_batch_tokens
    loss = PPOLoss(cfg, models.policy)
    experience_maker = ExperienceMaker(cfg, models.policy, models.reference, ranks, tokens)
    examples = source = None
    if cfg.ptx_coef:
        examples = load_ptx_data(cfg, plan.tokenizer, cached_only=ranks.world_size > 1)
        require_embedded(examples, models.policy.model)
        train = replace(cfg.train, batch_size=cfg.ptx_batch_size, max_steps=UNLIMITED_STEPS)
        source = ExampleLoader(examples, cfg.data, train, cfg.seed, tokens, ranks)
    return PPOComponents(
        loss,
        experience_maker,
        PPOUpdater(cfg, experience_maker, loss, source, ranks),
        examples,
        value_lr_factors(cfg, models.policy, peak_learning_rate(cfg)),
    )


def load_ptx_data(cfg: PPOConfig, tokenizer: Any, *, cached_only: bool) -> Examples:
    """Load the rows of `ptx_data`.

    Raises:
        DataError: they cannot be read, or are neither text nor chats nor pairs with a completion.
    """
    data = replace(
        cfg.data,
        path=cfg.ptx_data,
        revision=cfg.ptx_revision,
        eval="none",
        format="auto",
        columns={},
    )
    # `prepare` has already printed the report on these rows
    with muted() if cached_only else contextlib.nullcontext():
        found, _ = load_examples(
            data, "sft", tokenizer, LIKELIHOOD_RECORDS, cfg.seed, cached_only=cached_only
        )
    return found
