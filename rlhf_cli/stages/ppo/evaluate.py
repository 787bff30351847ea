"""What a run of ppo made, measured on held-out prompts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from rlhf_cli.console import logger
from rlhf_cli.context import RunContext
from rlhf_cli.data.prompts import PromptSet, encode_prompts, load_held_out_prompts
from rlhf_cli.data.tokens.prompts import PromptEncoder, becomes_message
from rlhf_cli.errors import DataError
from rlhf_cli.evaluation.intervals import Measurement, proportion
from rlhf_cli.models.config import LoadConfig, ModelConfig
from rlhf_cli.models.load import load_frozen
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.rewards.rewards import MAX_TOKENS, load_combined_reward
from rlhf_cli.rollout.ends import add_end_token
from rlhf_cli.stages.evaluation import Evaluation, require_reference
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.ppo.held_out import answer
from rlhf_cli.stages.ppo.learning import Teacher
from rlhf_cli.stages.ppo.rollout import Author
from rlhf_cli.stages.prepare_data import say_max_length
from rlhf_cli.stages.reference import ReferenceModel


def open_evaluation(cfg: PPOConfig, stage: str) -> Evaluation:
    """Open the held-out prompts.

    Measures the score of responses to them by the run's own reward, and KL from its reference.

    Args:
        cfg: of the run; `model.path` is its result, `data.eval` the prompts.
        stage: names the shipped rows, and stands in errors.

    Raises:
        ConfigError: it is not known what the policy started from.
        DataError: there is no prompt.
    """
    require_reference(cfg)
    say_max_length(cfg)
    tokenizer = load_tokenizer(cfg.model)
    prompts = load_held_out_prompts(cfg.data, stage)
    if prompts is None:
        raise DataError(
            f"data.path: none given, and {cfg.model.path} held out no rows. Try data=FILE"
        )
    as_message = becomes_message(cfg.template, cfg.model.path, cfg.model.revision, tokenizer)
    most = cfg.data.max_length - cfg.sampling.max_new_tokens
    encoder = PromptEncoder(tokenizer, as_message=as_message)
    asked = encode_prompts(prompts, encoder, most, cfg.data.truncation)
    return partial(_measure, cfg, tokenizer, encoder, asked)


def _measure(
    cfg: PPOConfig,
    tokenizer: Any,
    encoder: PromptEncoder,
    asked: tuple[PromptSet, list[list[int]]],
    ctx: RunContext,
) -> list[Measurement]:
    policy = load_frozen(Policy, cfg, tokenizer, ctx)
    add_end_token(policy.model, tokenizer, encoder.turn_end)
    logger.info(f"reference: {cfg.model.reference}")
    started = LoadConfig(model=ModelConfig(path=cfg.model.reference), kernels=cfg.kernels)
    reference = ReferenceModel(load_frozen(Policy, started, tokenizer, ctx))
    rewards = load_combined_reward(cfg.reward, tokenizer, ctx)
    plain = replace(cfg.sampling, cuda_graphs=False)  # the run may have had a GPU that is not here
    one = replace(
        cfg,
        sampling=plain,
        samples_per_prompt=1,
        compat="none",
        rollout_logprobs="recompute",
    )
    author = Author(one, *asked, policy, rewards, tokenizer, ctx.ranks)
    found = answer(author, Teacher(one, policy, reference, ctx.ranks, MAX_TOKENS), ctx.ranks)
    by_row = {name: values.numpy() for name, values in vars(found).items()}
    ended = by_row.pop("eos_fraction")
    means = [Measurement(name, (values,)) for name, values in by_row.items()]
    return [*means, proportion("eos_fraction", ended)]
