"""PPO for loops of your own, with scores from people, a simulator or anything else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.records.fields import Message, Prompt, parse_messages
from rlhf_cli.data.report import DataReport, MalformedRow, RefusedRow
from rlhf_cli.errors import ConfigError, DataError
from rlhf_cli.losses.reduction import Metrics
from rlhf_cli.models.context_length import context_length
from rlhf_cli.preflight.models import ppo_step_problems
from rlhf_cli.rollout.engine import DEFAULT_BATCH_SIZE, generate
from rlhf_cli.rollout.response import Response, response_text
from rlhf_cli.rollout.stopping import add_end_token, end_token_ids
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.ppo.setup import build_components, load_models, open_ppo_run
from rlhf_cli.stages.rollouts.prompts import PromptData
from rlhf_cli.stages.tokenizers import load_prompt_encoder
from rlhf_cli.stages.training import prepare_training
from rlhf_cli.train.export import save_model
from rlhf_cli.train.loop import TrainingLoop
from rlhf_cli.train.task import RunResult, TrainingTask


class _GivenUpdates:
    """A `StepSource` of the updates that `PPOTrainer.step` sets, one step at a time."""

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


def _trainer_problems(cfg: PPOConfig) -> list[str]:
    found = []
    if cfg.reuses_logprobs:
        found.append(
            "rollout_logprobs: got reuse; PPOTrainer.step accepts responses without log-probs. "
            "Try rollout_logprobs=recompute"
        )
    if cfg.normalize_rewards == "each":
        found.append(
            "normalize_rewards: got each; PPOTrainer.step takes one score of each response. "
            "Try normalize_rewards=sum"
        )
    if cfg.launch.shard != "none":
        found.append(
            f"launch.shard: got {cfg.launch.shard}; PPOTrainer is one process, and weights are "
            "divided among several. Try launch.shard=none, or `rlhf ppo`"
        )
    return found


class PPOTrainer:
    """PPO one update at a time, with the same code as `rlhf ppo`; one process.

    With `train.max_steps` the learning rate follows `train.schedule`; without, it is constant.

    Args:
        cfg: configuration of `rlhf ppo`; `data` and `reward` are not read.
        out: folder for `metrics.jsonl` and `model/`.

    Raises:
        ConfigError: keys contradict each other.
        ModelError: a model cannot be loaded.
    """

    def __init__(self, cfg: PPOConfig, out: str | Path) -> None:
        if found := cfg.step_problems() + ppo_step_problems(cfg) + _trainer_problems(cfg):
            raise ConfigError("\n".join(found))
        if not cfg.train.max_steps:
            cfg = replace(cfg, train=replace(cfg.train, schedule="constant"))
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        self.cfg, self.ctx = cfg, open_ppo_run(cfg, folder)
        self.encoder = load_prompt_encoder(cfg)
        self.tokenizer = self.encoder.tokenizer
        self.report = DataReport(templated=self.encoder.as_message)
        data = PromptData(tokenizer=self.tokenizer, report=self.report, encoder=self.encoder)
        models = load_models(cfg, self.ctx, data)
        self.policy = models.policy
        plan = prepare_training(cfg, self.ctx, models.policy, data)
        components = build_components(cfg, plan, models)
        self.updates = components.updates
        self.source = _GivenUpdates(cfg.train.max_steps or 2**31)
        self.generated = 0
        task = TrainingTask(
            policy=self.policy,
            source=self.source,
            loss=components.loss,
            locate=lambda rows: f"prompts[{rows.example_ids[0]}]",
            lr_factors=components.lr_factors,
        )
        self.loop = TrainingLoop(task, plan.train, self.ctx, plan.start.fingerprint)

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end a response."""
        return end_token_ids(self.policy.model, self.tokenizer)

    def generate(self, prompts: Sequence[Prompt]) -> list[Response]:
        """Generate a response to each prompt by `cfg.sampling`, with new random numbers each time.

        Args:
            prompts: text or messages, as `Message` or as in a file.

        Raises:
            DataError: a prompt is neither.
            ConfigError: prompt and response do not fit the model's positions.
        """
        first, self.generated = self.generated, self.generated + len(prompts)
        responses = generate(
            self.policy,
            self.tokenizer,
            [self._encode(index, prompt) for index, prompt in enumerate(prompts)],
            self.cfg.sampling,
            batch_size=self.cfg.max_num_seqs or DEFAULT_BATCH_SIZE,
            prompt_numbers=range(first, first + len(prompts)),
        )
        skip = self.cfg.reward.skip_special_tokens
        for response in responses:
            response.text = response_text(
                self.tokenizer, response.token_ids, self.end_ids, skip_special_tokens=skip
            )
        return responses

    def step(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response | str],
        scores: Sequence[float],
    ) -> dict[str, float]:
        """Train on scored responses: `ppo_epochs` times `minibatches` optimizer steps.

        Args:
            prompts: as many as a multiple of `minibatches`; with an `advantage` that compares
                responses to one prompt, each `samples_per_prompt` times in a row.
            responses: one per prompt; from `generate`, or a text, which gets an end token.
            scores: one per response; higher is better.

        Returns:
            The metrics of the step, as in `metrics.jsonl`.

        Raises:
            DataError: the three differ in number, or do not fit the minibatches or the model.
            NonFinite: the KL from the reference is above `kl_limit`.
        """
        encoded = self._encode_responses(prompts, responses, scores)
        points = torch.tensor([float(score) for score in scores])
        if not points.isfinite().all():
            raise DataError("scores: got one that is not finite; need a number for each response")
        batch = self.updates.start_rollout(encoded, points, self.loop.step + 1)
        self.source.metrics = self.updates.metrics
        self.source.updates = self.updates.minibatches(batch)
        self.loop.train_step()
        values = self.loop.meter.read()
        self.loop.log(values)
        return values

    def _encode_responses(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response | str],
        scores: Sequence[float],
    ) -> list[Response]:
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
            self._encode_response(index, prompt, response)
            for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        ]
        positions = context_length(self.policy.model)
        for response in found:
            if positions and len(response) > positions:
                raise DataError(
                    f"prompts[{response.index}] and its response have {len(response)} tokens, more "
                    f"than the model's {positions} positions"
                )
        return found

    def _encode_response(self, index: int, prompt: Prompt, response: Response | str) -> Response:
        prompt_ids = self._encode(index, prompt)
        chat = self.encoder.as_message or not isinstance(prompt, str)
        self.report.templated |= chat
        if isinstance(response, Response):
            return Response(index, index, prompt_ids, response.token_ids, response.finished)
        token_ids = self.tokenizer.encode(response, add_special_tokens=False)
        end = (self.encoder.turn_end if chat else None) or self.end_ids[0]
        return Response(index, index, prompt_ids, [*token_ids, end], finished=True)

    def _encode(self, index: int, prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str) and not all(isinstance(turn, Message) for turn in prompt):
            try:
                prompt = parse_messages(f"prompts[{index}]", prompt)
            except MalformedRow as error:
                raise DataError(str(error)) from error
        try:
            tokens = self.encoder.encode(prompt)
        except RefusedRow as error:
            raise DataError(f"prompts[{index}]: {error}") from error
        add_end_token(self.policy.model, self.tokenizer, self.encoder.turn_end)
        return tokens

    def save(self) -> Path:
        """Save the policy in the format of `from_pretrained`, and return its folder.

        Raises:
            CheckpointError: the disk is full or read-only.
        """
        result = RunResult(self.loop.step, 0.0, [], self.loop.optimizer.masters)
        trained_on = "chat" if self.report.templated else "text"
        save_model(
            self.policy, self.tokenizer, self.end_ids, trained_on, self.cfg, self.ctx, result
        )
        return self.ctx.out / "model"
