"""The policy writes responses to prompts, and what scores them is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rlhf_cli.data.prompts import PromptSet
from rlhf_cli.distributed import Ranks
from rlhf_cli.models.policy import Policy
from rlhf_cli.rewards.rewards import Rewards, Scores
from rlhf_cli.rewards.samples import Samples
from rlhf_cli.rollout.ends import end_tokens
from rlhf_cli.rollout.engine import Rollout, generate
from rlhf_cli.rollout.text import response_text
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.ppo.rows import Written
from rlhf_cli.stages.ppo.samples import Sample


class Author:
    """Writes responses to prompts of a data set, and has them scored.

    Args:
        cfg: how tokens are drawn, and how many responses a prompt gets.
        prompts: of the data set.
        tokens: of each prompt.
        policy: writes with the weights that it has when asked.
        rewards: score whole responses.
        tokenizer: the policy's.
        ranks: share the prompts of a step.
    """

    def __init__(
        self,
        cfg: PPOConfig,
        prompts: PromptSet,
        tokens: Sequence[list[int]],
        policy: Policy,
        rewards: Rewards,
        tokenizer: Any,
        ranks: Ranks,
    ) -> None:
        self.cfg, self.prompts, self.tokens = cfg, prompts, tokens
        self.policy, self.rewards, self.tokenizer = policy, rewards, tokenizer
        self.ranks = ranks

    def write(self, chosen: Sequence[int], places: Sequence[int], step: int) -> list[Written]:
        """Responses to some prompts, all samples of the first one first; all ranks call it.

        Args:
            chosen: indices of this rank's prompts.
            places: of each in the step, over all ranks: a response does not depend on the ranks.
            step: from 1; another one gives other draws.
        """
        cfg, samples = self.cfg, self.cfg.samples_per_prompt
        drawn = generate(
            self.policy,
            self.tokenizer,
            [self.tokens[i] for i in chosen],
            cfg.sampling,
            samples=samples,
            numbers=[step * cfg.train.batch_size + place for place in places],
            logprobs=cfg.reuses_logprobs,
        )
        numbers = [place * samples + sample for place in places for sample in range(samples)]
        asked = [index for index in chosen for _ in range(samples)]
        behind = self._behind(drawn)
        rows = zip(drawn.tokens, drawn.finished, behind, drawn.logprobs, strict=True)
        return [
            Written(index, number, self.tokens[index], *row)
            for index, number, row in zip(asked, numbers, rows, strict=True)
        ]

    def _behind(self, drawn: Rollout) -> list[int | None]:
        """With `compat=trl`, a token behind the end of each response but the longest.

        TRL's tables are as wide as the longest response, which has no position behind it.
        """
        if self.cfg.compat != "trl":
            return [None] * len(drawn.tokens)
        width = max(self.ranks.gather(max(map(len, drawn.tokens), default=0)))
        ends = zip(drawn.tokens, drawn.finished, strict=True)
        pad = self.tokenizer.pad_token_id
        return [pad if ended and len(tokens) < width else None for tokens, ended in ends]

    def score(self, responses: Sequence[Written], *, observe: bool = True) -> Scores:
        """What responses are given; all ranks call it together.

        Args:
            responses: of this rank, perhaps none.
            observe: whether a running scale sees them.
        """
        asked = [one.prompt for one in responses]
        samples = Samples(
            [self.prompts.prompts[i] for i in asked],
            self.texts(responses),
            [list(one.before) for one in responses],
            [list(one.tokens) for one in responses],
            self.prompts.select_columns(asked),
        )
        return self.rewards.score(samples, observe=observe)

    def texts(self, responses: Sequence[Written]) -> list[str]:
        """The responses as they are scored and shown."""
        ends = end_tokens(self.policy.model, self.tokenizer)
        skip = self.cfg.reward.skip_special_tokens
        return [
            response_text(self.tokenizer, one.tokens, ends, skip_special_tokens=skip)
            for one in responses
        ]

    def show(self, responses: Sequence[Written], score: Tensor, kl: Tensor) -> list[Sample]:
        """Some responses as they are shown, with the score and the KL of each."""
        texts = self.texts(responses)
        return [
            Sample(self._shown(one.prompt), text, float(score[k]), float(kl[k]), len(one.tokens))
            for k, (one, text) in enumerate(zip(responses, texts, strict=True))
        ]

    def _shown(self, index: int) -> str:
        prompt = self.prompts.prompts[index]
        return prompt if isinstance(prompt, str) else prompt[-1].content
