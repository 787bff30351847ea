"""Responses to the prompts of a data set, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rlhf_cli.data.prompts import PromptSet
from rlhf_cli.models.policy import Policy
from rlhf_cli.rewards.rewards import CombinedReward, Scores
from rlhf_cli.rewards.samples import Samples
from rlhf_cli.rollout.engines import Engine
from rlhf_cli.rollout.response import Response, response_text
from rlhf_cli.rollout.stopping import end_token_ids
from rlhf_cli.stages.rollouts.config import RewardedSettings
from rlhf_cli.stages.rollouts.prompts import EncodedPrompts


class RolloutWorker:
    """Generates responses to the prompts of a data set.

    Args:
        prompts: the prompts and their tokens.
        engine: generates.
        tokenizer: decodes responses.
        end_ids: tokens that end a response.
        samples: responses per prompt.
        batch_size: prompts of a step, over all ranks; numbers the prompts of later steps.
        logprobs: whether responses need the log-probs of the sampler.
        skip_special_tokens: remove all special tokens from the texts.
    """

    def __init__(
        self,
        prompts: EncodedPrompts,
        engine: Engine,
        tokenizer: Any,
        end_ids: Sequence[int],
        *,
        samples: int,
        batch_size: int,
        logprobs: bool = False,
        skip_special_tokens: bool = False,
    ) -> None:
        self.prompts, self.prompt_ids = prompts
        self.engine, self.tokenizer, self.end_ids = engine, tokenizer, end_ids
        self.samples, self.batch_size, self.logprobs = samples, batch_size, logprobs
        self.skip_special_tokens = skip_special_tokens

    def generate(
        self, indices: Sequence[int], positions: Sequence[int], step: int
    ) -> list[Response]:
        """Generate responses to prompts, all samples of the first prompt first; collective.

        Args:
            indices: this rank's prompts, as indices of the data set.
            positions: position of each in the step, over all ranks, so that a response does not
                depend on the number of ranks.
            step: from 1; each step has other random numbers.
        """
        responses = self.engine.generate(
            [self.prompt_ids[index] for index in indices],
            samples=self.samples,
            prompt_numbers=[step * self.batch_size + position for position in positions],
            logprobs=self.logprobs,
        )
        return [
            replace(
                response,
                index=positions[response.prompt_index] * self.samples
                + response.index % self.samples,
                prompt_index=indices[response.prompt_index],
                text=self.text(response),
            )
            for response in responses
        ]

    def text(self, response: Response) -> str:
        """Text of a response, without the tokens that end it."""
        skip = self.skip_special_tokens
        return response_text(
            self.tokenizer, response.token_ids, self.end_ids, skip_special_tokens=skip
        )

    def prompt_text(self, index: int) -> str:
        """Text of a prompt, of a chat its last message."""
        prompt = self.prompts.prompts[index]
        return prompt if isinstance(prompt, str) else prompt[-1].content


def create_worker(
    cfg: RewardedSettings,
    prompts: EncodedPrompts,
    engine: Engine,
    tokenizer: Any,
    policy: Policy,
    *,
    samples: int,
    logprobs: bool = False,
) -> RolloutWorker:
    """Create the worker of a run for training or held-out prompts.

    Args:
        cfg: the whole configuration.
        prompts: the prompts and their tokens.
        engine: generates.
        tokenizer: the policy's.
        policy: whose end tokens end a response.
        samples: responses per prompt.
        logprobs: whether responses need the log-probs of the sampler.
    """
    return RolloutWorker(
        prompts,
        engine,
        tokenizer,
        end_token_ids(policy.model, tokenizer),
        samples=samples,
        batch_size=cfg.train.batch_size,
        logprobs=logprobs,
        skip_special_tokens=cfg.reward.skip_special_tokens,
    )


def score_responses(
    rewards: CombinedReward,
    prompts: PromptSet,
    responses: Sequence[Response],
    *,
    observe: bool = True,
) -> Scores:
    """Score responses; all ranks call it together.

    Args:
        rewards: score whole responses.
        prompts: the data set of their prompts.
        responses: of this rank, possibly none.
        observe: whether the running scale of the rewards is updated.
    """
    indices = [response.prompt_index for response in responses]
    samples = Samples(
        [prompts.prompts[index] for index in indices],
        [response.text for response in responses],
        [list(response.prompt_ids) for response in responses],
        [list(response.token_ids) for response in responses],
        prompts.select_columns(indices),
    )
    return rewards.score(samples, observe=observe)
