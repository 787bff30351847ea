"""Evaluation of the result of a run that generated its responses, by `rlhf evaluate`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from rlhf_cli.console import logger
from rlhf_cli.context import RunContext
from rlhf_cli.data.prompts import (
    PromptEncoder,
    encode_prompts,
    load_held_out_prompts,
    uses_chat_template,
)
from rlhf_cli.errors import DataError
from rlhf_cli.evaluation.intervals import Measurement
from rlhf_cli.models.config import LoadConfig, ModelConfig
from rlhf_cli.models.load import LoadInputs, load_frozen
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.rewards.rewards import MAX_TOKENS, load_combined_reward
from rlhf_cli.rollout.engines import LocalEngine
from rlhf_cli.rollout.stopping import add_end_token
from rlhf_cli.stages.evaluation import Evaluation, require_reference
from rlhf_cli.stages.prepare_data import log_max_length
from rlhf_cli.stages.reference import ReferenceModel
from rlhf_cli.stages.rollouts.held_out import HeldOutPrompts, measurements
from rlhf_cli.stages.rollouts.prompts import EncodedPrompts
from rlhf_cli.stages.rollouts.rows import response_kl
from rlhf_cli.stages.rollouts.worker import create_worker


def open_evaluation(cfg: Any, stage: str) -> Evaluation:
    """Load the held-out prompts of a run; the result evaluates its policy on them.

    Measures the score by the run's own reward, and the KL from its reference.

    Args:
        cfg: of the run, with a reward and a reference; `model.path` is its result, `data.eval` the
            prompts.
        stage: names the shipped rows, and is used in errors.

    Raises:
        ConfigError: it is not known what the policy started from.
        DataError: there is no prompt.
    """
    require_reference(cfg)
    log_max_length(cfg.data, cfg.model)
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
    cfg: Any,
    tokenizer: Any,
    encoder: PromptEncoder,
    encoded: EncodedPrompts,
    ctx: RunContext,
) -> list[Measurement]:
    policy = load_frozen(Policy, cfg, LoadInputs(tokenizer, ctx))
    add_end_token(policy.model, tokenizer, encoder.turn_end)
    logger.info(f"reference: {cfg.model.reference}")
    start = LoadConfig(model=ModelConfig(path=cfg.model.reference), kernels=cfg.kernels)
    reference = ReferenceModel(load_frozen(Policy, start, LoadInputs(tokenizer, ctx)))
    rewards = load_combined_reward(cfg.reward, tokenizer, ctx)
    sampling = replace(cfg.sampling, cuda_graphs=False)  # the run may have had a GPU, this has none
    engine = LocalEngine(policy, tokenizer, sampling)
    compute_kl = partial(
        response_kl,
        policy=policy,
        reference=reference,
        ranks=ctx.ranks,
        max_tokens=MAX_TOKENS,
        temperature=sampling.temperature,
    )
    worker = create_worker(cfg, encoded, engine, tokenizer, policy, samples=1)
    return measurements(HeldOutPrompts(worker, rewards, compute_kl, ctx.ranks).measure())
