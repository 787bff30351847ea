"""Rollouts of PPO: generate responses to prompts, score them, and log some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from rlhf_cli.console import logger, shorten
from rlhf_cli.data.prompts import PromptSet
from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.sharding import gathered
from rlhf_cli.rewards.rewards import CombinedReward, Scores
from rlhf_cli.rewards.samples import Samples
from rlhf_cli.rollout.engine import DEFAULT_BATCH_SIZE, generate
from rlhf_cli.rollout.response import Response, response_text
from rlhf_cli.rollout.stopping import end_token_ids
from rlhf_cli.runs import lock
from rlhf_cli.runs.run_files import (
    SAMPLES,
    append_json_lines,
    format_json_lines,
    read_json_lines,
    write_text_atomic,
)
from rlhf_cli.stages.ppo.config import PPOConfig

LOGGED_RESPONSES = 4
"""Responses of a rollout that are logged."""

LOG_WIDTH = 48
"""Characters of a prompt and of a response in the log."""


class RolloutWorker:
    """Generates responses to prompts of a dataset, and has them scored.

    Args:
        cfg: sampling, and the number of responses per prompt.
        prompts: prompts of the dataset.
        prompt_ids: token ids of each prompt.
        policy: generates with its current weights.
        rewards: score whole responses.
        tokenizer: the policy's tokenizer.
        ranks: share the prompts of a step.
        slots: responses decoded at once.
    """

    def __init__(
        self,
        cfg: PPOConfig,
        prompts: PromptSet,
        prompt_ids: Sequence[list[int]],
        policy: Policy,
        rewards: CombinedReward,
        tokenizer: Any,
        ranks: Ranks,
        slots: int = DEFAULT_BATCH_SIZE,
    ) -> None:
        self.slots = slots
        self.cfg, self.prompts, self.prompt_ids = cfg, prompts, prompt_ids
        self.policy, self.rewards, self.tokenizer = policy, rewards, tokenizer
        self.ranks = ranks

    def generate(
        self, indices: Sequence[int], positions: Sequence[int], step: int
    ) -> list[Response]:
        """Generate responses to prompts, all samples of the first prompt first; collective.

        Args:
            indices: this rank's prompts, as indices of the dataset.
            positions: position of each in the step, over all ranks, so that a response does not
                depend on the number of ranks.
            step: from 1; each step has other random numbers.
        """
        cfg, samples = self.cfg, self.cfg.samples_per_prompt
        with gathered(self.policy):
            responses = generate(
                self.policy,
                self.tokenizer,
                [self.prompt_ids[index] for index in indices],
                cfg.sampling,
                samples=samples,
                batch_size=self.slots,
                prompt_numbers=[step * cfg.train.batch_size + position for position in positions],
                logprobs=cfg.reuses_logprobs,
            )
        return [
            replace(
                response,
                index=positions[response.prompt_index] * samples + response.index % samples,
                prompt_index=indices[response.prompt_index],
                text=self._text(response),
                trailing_pad=pad,
            )
            for response, pad in zip(responses, self._trailing_pads(responses), strict=True)
        ]

    def _text(self, response: Response) -> str:
        end_ids = end_token_ids(self.policy.model, self.tokenizer)
        skip = self.cfg.reward.skip_special_tokens
        return response_text(self.tokenizer, response.token_ids, end_ids, skip_special_tokens=skip)

    def _trailing_pads(self, responses: Sequence[Response]) -> list[int | None]:
        """With `compat=trl`, a token after the end of each response except the longest.

        TRL's tensors are as wide as the longest response, which has no position after it.
        """
        if self.cfg.compat != "trl":
            return [None] * len(responses)
        lengths = [len(response.token_ids) for response in responses]
        width = max(self.ranks.all_gather_json(max(lengths, default=0)))
        pad = self.tokenizer.pad_token_id
        return [
            pad if response.finished and length < width else None
            for response, length in zip(responses, lengths, strict=True)
        ]

    def score(self, responses: Sequence[Response], *, observe: bool = True) -> Scores:
        """Score responses; all ranks call it together.

        Args:
            responses: of this rank, possibly none.
            observe: whether the running scale of the rewards is updated.
        """
        indices = [response.prompt_index for response in responses]
        samples = Samples(
            [self.prompts.prompts[index] for index in indices],
            [response.text for response in responses],
            [list(response.prompt_ids) for response in responses],
            [list(response.token_ids) for response in responses],
            self.prompts.select_columns(indices),
        )
        return self.rewards.score(samples, observe=observe)

    def make_samples(
        self, responses: Sequence[Response], score: Tensor, kl: Tensor
    ) -> list[LoggedSample]:
        """Responses with their scores and KLs, for `SampleLog`."""
        return [
            LoggedSample(
                self.prompt_text(response.prompt_index),
                response.text,
                float(score[k]),
                float(kl[k]),
                len(response.token_ids),
            )
            for k, response in enumerate(responses)
        ]

    def prompt_text(self, index: int) -> str:
        """Text of a prompt, of a chat its last message."""
        prompt = self.prompts.prompts[index]
        return prompt if isinstance(prompt, str) else prompt[-1].content


@dataclass(frozen=True)
class LoggedSample:
    """A line of `samples.jsonl`, without its step.

    Attributes:
        prompt: text of the prompt, of a chat the last message.
        response: text of the response.
        score: of the response.
        kl: nats, of the whole response from the reference.
        tokens: length of the response.
    """

    prompt: str
    response: str
    score: float
    kl: float
    tokens: int


class SampleLog:
    """Writes samples to `samples.jsonl` and prints them; only rank 0 does.

    Args:
        folder: of the run.
        written: whether this rank writes.
        full: print whole texts, on lines of their own.
    """

    def __init__(self, folder: Path, *, written: bool, full: bool = False) -> None:
        self.path, self.written, self.full = folder / SAMPLES, written, full

    def add(self, step: int, samples: Sequence[LoggedSample]) -> None:
        """Append the samples of a step, and print them.

        Raises:
            CheckpointError: the disk is full, the folder read-only or owned by another process.
        """
        if not self.written:
            return
        lock.require_owned(self.path.parent)
        rows = [{"step": step, **asdict(sample)} for sample in samples]
        append_json_lines(self.path, rows)
        logger.info(f"samples of step {step}:   score      KL  prompt -> response")
        for sample in samples:
            prompt, response = _last_chars(sample.prompt), _first_chars(sample.response)
            if self.full:
                prompt, response = _block(sample.prompt), _block(sample.response)
            logger.info(f"  {sample.score:20.2f}  {sample.kl:6.2f}  {prompt} -> {response}")

    def truncate(self, step: int) -> None:
        """Remove samples after a step, for a run that resumes at its checkpoint."""
        if self.written and self.path.exists():
            kept = [row for row in read_json_lines(self.path) if row["step"] <= step]
            write_text_atomic(self.path, format_json_lines(kept))


def _first_chars(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= LOG_WIDTH else f"{plain[: LOG_WIDTH - 1]}…"


def _last_chars(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= LOG_WIDTH else f"…{plain[1 - LOG_WIDTH :]}"


def _block(text: str) -> str:
    """The text on lines of its own, without terminal control characters."""
    return "\n" + shorten(text, len(text))
