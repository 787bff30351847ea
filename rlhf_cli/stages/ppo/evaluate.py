"""Evaluation of a policy on held-out prompts: score, KL, length and end of its responses.

Used during a run of PPO, and by `rlhf evaluate` on its result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.console import logger
from rlhf_cli.context import RunContext
from rlhf_cli.data.prompts import (
    PromptEncoder,
    PromptSet,
    encode_prompts,
    load_held_out_prompts,
    uses_chat_template,
)
from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.errors import DataError
from rlhf_cli.evaluation.intervals import Measurement, proportion
from rlhf_cli.models.config import LoadConfig, ModelConfig
from rlhf_cli.models.load import LoadInputs, load_frozen
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.rewards.rewards import MAX_TOKENS, load_combined_reward
from rlhf_cli.rollout.stopping import add_end_token
from rlhf_cli.stages.evaluation import Evaluation, require_reference
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.ppo.experience import ExperienceMaker
from rlhf_cli.stages.ppo.rollout_worker import RolloutWorker
from rlhf_cli.stages.prepare_data import log_max_length
from rlhf_cli.stages.reference import ReferenceModel
from rlhf_cli.train.evaluation import HeldOutMetrics, from_measurements


@dataclass(frozen=True)
class HeldOutResponses:
    """Measurements of a response to each held-out prompt: [n] each, in the order of the ranks.

    Attributes:
        score: of the response.
        kl: nats, of the whole response from the reference.
        response_length: tokens.
        eos_fraction: 1 where it ended by itself, else 0.
    """

    score: Tensor
    kl: Tensor
    response_length: Tensor
    eos_fraction: Tensor


def measure_held_out(
    worker: RolloutWorker, experience_maker: ExperienceMaker, ranks: Ranks
) -> HeldOutResponses:
    """Generate and measure responses to held-out prompts, with the same random numbers each time.

    Args:
        worker: has the held-out prompts.
        experience_maker: computes the KL.
        ranks: share the prompts.
    """
    own = range(ranks.rank, len(worker.prompts), ranks.world_size)
    responses = worker.generate(own, own, step=0)
    found = (
        worker.score(responses, observe=False).total,
        experience_maker.compute_kl(responses),
        torch.tensor([float(len(one.token_ids)) for one in responses]),
        torch.tensor([float(one.finished) for one in responses]),
    )
    return HeldOutResponses(*(ranks.all_gather_concat(values).double() for values in found))


def evaluate(
    worker: RolloutWorker, experience_maker: ExperienceMaker, ranks: Ranks
) -> HeldOutMetrics:
    """Means of `measure_held_out`, and `loss`: `kl_coef` times the KL minus the score."""
    found = measure_held_out(worker, experience_maker, ranks)
    measured = measurements(found)
    kl_coef = worker.cfg.kl_coef
    columns = found.kl.numpy(), found.score.numpy()
    loss = Measurement("loss", columns, lambda kl, score: kl_coef * kl.mean(-1) - score.mean(-1))
    return from_measurements([loss, *measured])


def measurements(found: HeldOutResponses) -> list[Measurement]:
    """Mean of each measurement, and the proportion of responses that ended by themselves."""
    by_metric = {name: values.numpy() for name, values in vars(found).items()}
    finished = by_metric.pop("eos_fraction")
    means = [Measurement(name, (values,)) for name, values in by_metric.items()]
    return [*means, proportion("eos_fraction", finished)]


def open_evaluation(cfg: PPOConfig, stage: str) -> Evaluation:
    """Load the held-out prompts of a run; the result evaluates its policy on them.

    Measures the score by the run's own reward, and the KL from its reference.

    Args:
        cfg: of the run; `model.path` is its result, `data.eval` the prompts.
        stage: names the shipped rows, and is used in errors.

    Raises:
        ConfigError: it is not known what the policy started from.
        DataError: there is no prompt.
    """
    require_reference(cfg)
    log_max_length(cfg)
    tokenizer = load_tokenizer(cfg.model)
    prompts = load_held_out_prompts(cfg.data, stage)
    if prompts is None:
        raise DataError(
            f"data.path: none given, and {cfg.model.path} held out no rows. Try data=FILE"
        )
    as_message = uses_chat_template(cfg.template, cfg.model.path, cfg.model.revision, tokenizer)
    max_prompt_tokens = cfg.data.max_length - cfg.sampling.max_new_tokens
    encoder = PromptEncoder(tokenizer, as_message=as_message)
    encoded = encode_prompts(prompts, encoder, max_prompt_tokens, cfg.data.truncation)
    return partial(_evaluate_result, cfg, tokenizer, encoder, encoded)


def _evaluate_result(
    cfg: PPOConfig,
    tokenizer: Any,
    encoder: PromptEncoder,
    encoded: tuple[PromptSet, list[list[int]]],
    ctx: RunContext,
) -> list[Measurement]:
    policy = load_frozen(Policy, cfg, LoadInputs(tokenizer, ctx))
    add_end_token(policy.model, tokenizer, encoder.turn_end)
    logger.info(f"reference: {cfg.model.reference}")
    start = LoadConfig(model=ModelConfig(path=cfg.model.reference), kernels=cfg.kernels)
    reference = ReferenceModel(load_frozen(Policy, start, LoadInputs(tokenizer, ctx)))
    rewards = load_combined_reward(cfg.reward, tokenizer, ctx)
    sampling = replace(cfg.sampling, cuda_graphs=False)  # the run may have had a GPU, this has none
    single = replace(
        cfg,
        sampling=sampling,
        samples_per_prompt=1,
        compat="none",
        rollout_logprobs="recompute",
    )
    worker = RolloutWorker(single, *encoded, policy, rewards, tokenizer, ctx.ranks)
    experience_maker = ExperienceMaker(single, policy, reference, ctx.ranks, MAX_TOKENS)
    return measurements(measure_held_out(worker, experience_maker, ctx.ranks))
