"""PPO for a loop of your own: scores from people, from a simulator, from anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.records.fields import Message, Prompt, messages
from rlhf_cli.data.records.row_errors import Malformed, Refused
from rlhf_cli.data.report import DataReport
from rlhf_cli.errors import ConfigError, DataError
from rlhf_cli.losses.reduce import Metrics
from rlhf_cli.models.load import context_length
from rlhf_cli.models.wrapper import ModelWrapper
from rlhf_cli.preflight.models import peak_learning_rate, ppo_step_problems
from rlhf_cli.rollout.ends import add_end_token
from rlhf_cli.rollout.engine import generate
from rlhf_cli.rollout.text import response_text
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.ppo.rows import Written
from rlhf_cli.stages.ppo.training import PPOTraining
from rlhf_cli.train.artifact import save_model
from rlhf_cli.train.loop import RunResult, Trainer


@dataclass(frozen=True)
class Response:
    """What the policy wrote.

    Attributes:
        text: without special tokens.
        tokens: the end token included where there is one.
        finished: whether it ended by itself.
    """

    text: str
    tokens: list[int]
    finished: bool


class _GivenUpdates:
    """A `StepSource` of the updates that it is given, one step at a time."""

    def __init__(self, steps: int) -> None:
        self.total_steps = steps
        self.updates: Iterable[list[TokenBatch]] | None = None
        self.metrics: Metrics = {}

    def next_step(self) -> Iterable[list[TokenBatch]] | None:
        given, self.updates = self.updates, None
        return given

    def take_metrics(self) -> Metrics:
        return self.metrics

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        del state


class _Models(PPOTraining):
    """The models alone: prompts come later."""

    def __init__(self, cfg: PPOConfig, out: Path) -> None:
        super().__init__(cfg, out)
        self.report = DataReport(templated=self.encoder.as_message)

    def require_positions(self, model: ModelWrapper, name: str = "model") -> None:
        """Prompts are not known yet; `PPOTrainer.step` looks at each."""


def _reuse_problems(cfg: PPOConfig) -> list[str]:
    if not cfg.reuses_logprobs:
        return []
    return [
        "rollout_logprobs: got reuse; responses that are given to PPOTrainer.step come without "
        "log-probs. Try rollout_logprobs=recompute"
    ]


class PPOTrainer:
    """Policy, reference and value model, and one update at a time; the code of `rlhf ppo`.

    One process. With `train.max_steps` the learning rate follows `train.schedule`; without, it is
    constant.

    Args:
        cfg: as of `rlhf ppo`; `data` and `reward` are not read.
        out: folder for `metrics.jsonl` and `model/`.

    Raises:
        ConfigError: keys contradict each other.
        ModelError: a model cannot be loaded.
    """

    def __init__(self, cfg: PPOConfig, out: str | Path) -> None:
        if found := cfg.step_problems() + ppo_step_problems(cfg) + _reuse_problems(cfg):
            raise ConfigError("\n".join(found))
        if not cfg.train.max_steps:
            cfg = replace(cfg, train=replace(cfg.train, schedule="constant"))
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        self.cfg, self.run = cfg, _Models(cfg, folder)
        self.run.open_models()
        self.policy, self.tokenizer = self.run.policy, self.run.tokenizer
        self.source = _GivenUpdates(cfg.train.max_steps or 2**31)
        self.drawn = 0
        self.loop = Trainer(
            self.policy,
            self.source,
            self.run.loss,
            cfg.train,
            peak_learning_rate(cfg),
            self.run.ctx,
            evaluate=None,
            where=lambda rows: f"prompts[{rows.owners[0]}]",
            machinery=self.run.machinery,
        )

    def generate(self, prompts: Sequence[Prompt]) -> list[Response]:
        """A response to each prompt, drawn as `cfg.sampling` says; other draws each time.

        Args:
            prompts: text or messages, as `Message` or as in a file.

        Raises:
            DataError: a prompt is neither.
            ConfigError: prompt and response do not fit the model's positions.
        """
        first, self.drawn = self.drawn, self.drawn + len(prompts)
        drawn = generate(
            self.policy,
            self.tokenizer,
            [self._encode(number, prompt) for number, prompt in enumerate(prompts)],
            self.cfg.sampling,
            numbers=range(first, first + len(prompts)),
        )
        skip = self.cfg.reward.skip_special_tokens
        texts = [
            response_text(self.tokenizer, ids, self.run.ends, skip_special_tokens=skip)
            for ids in drawn.tokens
        ]
        parts = zip(texts, drawn.tokens, drawn.finished, strict=True)
        return [Response(*part) for part in parts]

    def step(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response | str],
        scores: Sequence[float],
    ) -> dict[str, float]:
        """Learn from scored responses: `ppo_epochs` times `minibatches` moves of the optimizer.

        Args:
            prompts: as many as a multiple of `minibatches`; with an `advantage` that compares
                responses to one prompt, each `samples_per_prompt` times in a row.
            responses: to each; what `generate` gave, or a text, which gets an end token.
            scores: of each; higher is better.

        Returns:
            The metrics of the step, as in `metrics.jsonl`.

        Raises:
            DataError: the three differ in number, or do not fit the minibatches or the model.
            NonFinite: the policy has left the reference far behind.
        """
        written = self._written(prompts, responses, scores)
        points = torch.tensor([float(score) for score in scores])
        if not points.isfinite().all():
            raise DataError("scores: got one that is not finite; need a number for each response")
        lesson = self.run.updates.begin(written, points, self.loop.step + 1)
        self.source.metrics = self.run.updates.metrics
        self.source.updates = self.run.updates.passes(lesson)
        self.loop.take()
        values = self.loop.meter.read()
        self.loop.log(values)
        return values

    def _written(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response | str],
        scores: Sequence[float],
    ) -> list[Written]:
        count, parts = len(prompts), self.cfg.minibatches * self.cfg.samples_per_prompt
        if not count == len(responses) == len(scores):
            raise DataError(
                f"got {count} prompts, {len(responses)} responses and {len(scores)} scores; need "
                "as many of each"
            )
        if not count or count % parts:
            raise DataError(
                f"got {count} prompts; need a multiple of {parts}, minibatches times "
                "samples_per_prompt"
            )
        found = [
            self._one(number, prompt, response)
            for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        ]
        room = context_length(self.policy.model)
        for one in found:
            if room and len(one) > room:
                raise DataError(
                    f"prompts[{one.number}] and its response have {len(one)} tokens, more than the "
                    f"model's {room} positions"
                )
        return found

    def _one(self, number: int, prompt: Prompt, response: Response | str) -> Written:
        before = self._encode(number, prompt)
        chat = self.run.encoder.as_message or not isinstance(prompt, str)
        self.run.report.templated |= chat
        if isinstance(response, str):
            text = self.tokenizer.encode(response, add_special_tokens=False)
            end = (self.run.encoder.turn_end if chat else None) or self.run.ends[0]
            response = Response(response, [*text, end], finished=True)
        return Written(number, number, before, response.tokens, response.finished)

    def _encode(self, number: int, prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str) and not all(isinstance(turn, Message) for turn in prompt):
            try:
                prompt = messages(f"prompts[{number}]", prompt)
            except Malformed as error:
                raise DataError(str(error)) from error
        try:
            tokens = self.run.encoder.encode(prompt)
        except Refused as error:
            raise DataError(f"prompts[{number}]: {error}") from error
        add_end_token(self.policy.model, self.tokenizer, self.run.encoder.turn_end)
        return tokens

    def save(self) -> Path:
        """Write the policy where `from_pretrained` and every command of ours can read it.

        Raises:
            CheckpointError: the disk is full or read-only.
        """
        result = RunResult(self.loop.step, 0.0, [], self.loop.optimizer.masters)
        trained_on = "chat" if self.run.report.templated else "text"
        save_model(
            self.policy, self.tokenizer, self.run.ends, trained_on, self.cfg, self.run.ctx, result
        )
        return self.run.ctx.out / "model"
