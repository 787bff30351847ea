"""Responses of a policy to prompts, and their scores by a reward model and a judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf_cli.commands.doctor.config import DoctorConfig
from rlhf_cli.commands.generator import Responses, TextGenerator
from rlhf_cli.commands.score.config import ScoreConfig, ScoredDataConfig
from rlhf_cli.commands.score.rows import read_rows
from rlhf_cli.console import logger
from rlhf_cli.context import RunContext
from rlhf_cli.data.prompts import PromptEncoder, PromptSet, load_prompts
from rlhf_cli.data.records.fields import Prompt, prompt_to_json
from rlhf_cli.data.report import RefusedRow, pluralize
from rlhf_cli.errors import DataError
from rlhf_cli.evaluation.intervals import Values
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.progress import ProgressCount
from rlhf_cli.rewards.config import RewardsConfig
from rlhf_cli.rewards.rewards import MAX_TOKENS, CombinedReward, load_combined_reward
from rlhf_cli.rewards.samples import Samples
from rlhf_cli.rollout.cuda_graphs import require_cuda
from rlhf_cli.runs.outputs import open_output
from rlhf_cli.runs.run_files import to_json_line


@dataclass(frozen=True)
class PolicyResponses:
    """K responses to each of P prompts.

    Attributes:
        prompts: P prompts, with the other columns of their rows.
        responses: P times K, all of the first prompt first.
        encoder: encodes prompts as the policy reads them.
    """

    prompts: PromptSet
    responses: Responses
    encoder: PromptEncoder

    @property
    def count(self) -> int:
        """Responses per prompt, K."""
        return len(self.responses.texts) // len(self.prompts)

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the policy."""
        return self.encoder.tokenizer

    def matrix(self, values: Sequence[float]) -> Values:
        """Values of all responses as [P, K]."""
        return np.asarray(values, np.float64).reshape(len(self.prompts), self.count)

    @property
    def lengths(self) -> Values:
        """Tokens of each response, [P, K]."""
        return self.matrix([len(tokens) for tokens in self.responses.tokens])

    def samples(self) -> Samples:
        """All responses with the policy's own tokens, as PPO scores them."""
        each = self._prompts_of(range(len(self.responses.texts)))
        found = self.responses
        return Samples(each.prompts, found.texts, found.prompt_tokens, found.tokens, each.columns)

    def changed(self, indices: Sequence[int], texts: Sequence[str]) -> Samples:
        """Other texts in place of some responses, tokenized, with the same ends.

        Args:
            indices: of the responses.
            texts: in place of each.
        """
        each = self._prompts_of(indices)
        tokens = [
            [*self.encode(text), *self._end_of(index)]
            for index, text in zip(indices, texts, strict=True)
        ]
        prompt_tokens = [self.responses.prompt_tokens[index] for index in indices]
        return Samples(each.prompts, list(texts), prompt_tokens, tokens, each.columns)

    def _prompts_of(self, indices: Sequence[int]) -> PromptSet:
        return self.prompts.select([index // self.count for index in indices])

    def encode(self, text: str) -> list[int]:
        """Token ids of a response's text, without an end token."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _end_of(self, index: int) -> list[int]:
        """The end token of a response; nothing if it was cut off."""
        return self.responses.tokens[index][-1:] if self.responses.ended[index] else []


def sample_responses(cfg: DoctorConfig, ctx: RunContext) -> PolicyResponses:
    """Load the policy and sample responses to every prompt; its memory is free afterwards.

    Raises:
        DataError: there is no prompt.
        ModelError: the policy cannot be loaded.
    """
    require_cuda(cfg.sampling, ctx.device)
    prompts = load_prompts(cfg.prompts)
    model = ModelConfig(path=cfg.policy, revision=cfg.policy_revision, init="pretrained")
    generator = TextGenerator(model, cfg.quant, cfg.template, ctx)
    prompts, tokens = generator.encode(prompts)
    torch.manual_seed(cfg.sampling.seed)
    found = Responses([], [], [], [])
    samples = cfg.samples_per_prompt
    with ProgressCount("responses", len(tokens) * samples) as progress:
        for batch in generator.generate(tokens, cfg.sampling, cfg.batch_size, samples):
            progress.add(len(batch.texts))
            found.extend(batch)
    ended = sum(found.ended)
    logger.info(
        f"{cfg.policy}: {samples} responses to each of {pluralize(len(prompts), 'prompt')}, "
        f"{ended} of {len(found.texts)} ended by themselves"
    )
    return PolicyResponses(prompts, found, generator.encoder)


def load_reward(cfg: DoctorConfig, tokenizer: Any, ctx: RunContext) -> CombinedReward:
    """Load the reward model, which scores the policy's tokens if it has the same tokenizer."""
    reward = RewardsConfig(model=cfg.reward, revision=cfg.reward_revision)
    return load_combined_reward(reward, tokenizer, ctx, cfg.micro_batch_tokens or MAX_TOKENS)


def score(reward: CombinedReward, samples: Samples) -> list[float]:
    """Scores of samples, one each.

    Raises:
        DataError: a score is not finite.
    """
    found: list[float] = reward.score(samples, observe=False).total.tolist()
    return found


def labelled_pairs(cfg: DoctorConfig, sampled: PolicyResponses) -> Samples:
    """Responses of the preference pairs in `data`: chosen, rejected, chosen, ...

    Raises:
        DataError: the rows cannot be read, or none is a pair.
    """
    names = [item.name for item in fields(ScoredDataConfig)]
    data = ScoredDataConfig(**{name: getattr(cfg.data, name) for name in names})
    rows, report = read_rows(ScoreConfig(data=data, replace=True))
    for line in report.left_out_lines():
        logger.info(line)
    pairs = [row.pairs for row in rows if row.kind == "pair"]
    if not pairs:
        raise DataError(
            f"data.path: {', '.join(report.files)} has {report.kind} rows; need preference pairs, "
            "chosen and rejected"
        )
    encoded = [one for pair in pairs for one in _encode_pair(pair, sampled)]
    if not encoded:
        raise DataError(f"data.path: the chat template of {cfg.policy} refuses all prompts")
    prompts, texts, prompt_tokens, tokens = zip(*encoded, strict=True)
    return Samples(prompts, texts, prompt_tokens, tokens)


def _encode_pair(
    pair: Sequence[tuple[Prompt, str]], sampled: PolicyResponses
) -> Iterator[tuple[Prompt, str, list[int], list[int]]]:
    """Prompt, text and tokens of both responses; nothing where the template refuses the prompt."""
    for prompt, text in pair:
        try:
            prompt_tokens = sampled.encoder.encode(prompt)
        except RefusedRow:
            return
        yield prompt, text, prompt_tokens, [*sampled.encode(text), sampled.tokenizer.eos_token_id]


def write_responses(
    path: str, sampled: PolicyResponses, scores: Values, judged: Values | None
) -> None:
    """Write a ranking of each prompt's responses; `scores` are the judge's where there is one."""
    with open_output(Path(path)) as write:
        for row in _rankings(sampled, scores, judged):
            write(to_json_line(row))
    logger.info(f"responses: {path}")


def _rankings(
    sampled: PolicyResponses, scores: Values, judged: Values | None
) -> Iterator[dict[str, Any]]:
    best = scores if judged is None else judged
    count = sampled.count
    for index, prompt in enumerate(sampled.prompts.prompts):
        yield {
            "prompt": prompt_to_json(sampled.encoder.to_messages(prompt)),
            "responses": sampled.responses.texts[index * count : (index + 1) * count],
            "scores": best[index].tolist(),
            "reward_scores": scores[index].tolist(),
        }
