"""What a run of ppo made, measured on held-out prompts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from rlhf_cli.context import RunContext, say
from rlhf_cli.data.prompts import PromptSet, encode_prompts, load_held_out_prompts
from rlhf_cli.data.tokens.prompts import PromptEncoder, becomes_message
from rlhf_cli.errors import DataError
from rlhf_cli.evaluation.measured import Measured, share_of
from rlhf_cli.models.config import LoadConfig, ModelConfig
from rlhf_cli.models.load import LoadInputs, load_frozen
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.rewards.rewards import MAX_TOKENS, open_rewards
from rlhf_cli.rollout.ends import add_end_token
from rlhf_cli.stages.compared import require_reference
from rlhf_cli.stages.held_out import Evaluation
from rlhf_cli.stages.opening import say_max_length
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.ppo.held_out import answer
from rlhf_cli.stages.ppo.learning import Teacher
from rlhf_cli.stages.ppo.rollout import Author
from rlhf_cli.stages.reference import Held


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
) -> list[Measured]:
    policy = load_frozen(Policy, cfg, LoadInputs(tokenizer, ctx))
    add_end_token(policy.model, tokenizer, encoder.turn_end)
    say(f"reference: {cfg.model.reference}")
    started = LoadConfig(model=ModelConfig(path=cfg.model.reference), kernels=cfg.kernels)
    reference = Held(load_frozen(Policy, started, LoadInputs(tokenizer, ctx)))
    rewards = open_rewards(cfg.reward, tokenizer, ctx)
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
    means = [Measured(name, (values,)) for name, values in by_row.items()]
    return [*means, share_of("eos_fraction", ended)]
