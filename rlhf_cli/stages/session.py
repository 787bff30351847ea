"""A run of a training stage, from its rows to its saved result: what most stages have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_cli.context import say
from rlhf_cli.data.dataset import LoadedExamples
from rlhf_cli.data.examples import Examples
from rlhf_cli.data.loader import ExampleLoader
from rlhf_cli.data.preview import show_first_example
from rlhf_cli.data.report import pluralize
from rlhf_cli.data.tokens.chat_template import turn_end
from rlhf_cli.errors import ConfigError
from rlhf_cli.models.load import Role, context_length
from rlhf_cli.models.vocabulary import require_embedded
from rlhf_cli.models.wrapper import ModelWrapper
from rlhf_cli.rollout.ends import add_end_token, end_tokens
from rlhf_cli.stages.config import StageConfig
from rlhf_cli.stages.opening import open_rows
from rlhf_cli.stages.training import Training
from rlhf_cli.train.measure import measure
from rlhf_cli.train.row_loss import RowLoss
from rlhf_cli.train.source import StageState
from rlhf_cli.train.update import Loss

Arrange = Callable[[LoadedExamples, str], Examples]
"""Called with rows and what they are for, `training` or `held-out`."""

Evaluate = Callable[[LoadedExamples], dict[str, float]]


def as_they_are(loaded: LoadedExamples, role: str = "training") -> Examples:
    """The examples of the records."""
    return loaded[0]


class Session(Training):
    """One run: its rows and tokenizer, then its model, then its training.

    Args:
        cfg: the whole configuration.
        out: the run folder.
        stage: names the shipped rows, and stands in errors.
        records: the record classes that the stage takes, the preferred first.
        arrange: makes the examples of the stage of those of the records.
    """

    def __init__(
        self,
        cfg: StageConfig,
        out: Path,
        stage: str,
        records: tuple[type, ...],
        arrange: Arrange = as_they_are,
    ) -> None:
        super().__init__(cfg, out)
        opened = open_rows(cfg, self.ctx, stage, records)
        self.tokenizer, self.new_tokens = opened.tokenizer, opened.new_tokens
        train, held_out = opened.train, opened.held_out
        self.examples, self.report = arrange(train, "training"), train[1]
        held = held_out and (arrange(held_out, "held-out"), held_out[1])
        self.held_out: LoadedExamples | None = held or None
        self.held_out_report = held_out[1] if held_out else None
        unchanged = self.examples is train[0]
        if cfg.log.preview:
            kind, full = self.report.kind if unchanged else "", cfg.log.samples == "full"
            show_first_example(self.examples, self.tokenizer, kind, full=full)

    def use(self, model: Role) -> Role:
        """Take the model that is trained, and settle how.

        Raises:
            ConfigError: rows are longer than the model's positions.
            DataError: rows hold ids that the model does not embed.
            CheckpointError: the run cannot be continued here.
        """
        self.require_positions(model)
        return self.settle(model)

    def require_positions(self, model: ModelWrapper, name: str = "model") -> None:
        """Refuse rows that are longer than the model's positions, or hold ids without a row."""
        for examples in (self.examples, *([self.held_out[0]] if self.held_out else [])):
            require_context(examples, model, name)
            require_embedded(examples, model.model, name)

    def train(
        self, model: ModelWrapper, loss: Loss, evaluate: Evaluate, state: StageState | None = None
    ) -> dict[str, Any]:
        """Train on the rows, save the result, and sum up.

        Args:
            model: what `use` was given.
            loss: of a micro-batch.
            evaluate: metrics of held-out rows; called without gradients.
            state: what the stage keeps from step to step.

        Returns:
            What the manifest tells of the run.
        """
        cfg, held_out = self.cfg, self.held_out
        if self.report.templated:
            add_end_token(model.model, self.tokenizer, turn_end(self.tokenizer))
        source = ExampleLoader(
            self.examples, cfg.data, cfg.train, cfg.seed, self.max_tokens, self.ctx.ranks
        )
        say(
            f"steps: {source.total_steps} of {cfg.train.batch_size} examples; "
            f"{self.max_tokens} tokens a pass"
        )
        if cfg.train.max_steps <= 0:
            say_few_steps(source.total_steps, len(self.examples), cfg.train.batch_size)
        return self.fit_and_save(
            model,
            loss,
            source,
            (lambda: evaluate(held_out)) if held_out else None,
            where=lambda rows: self.examples.location(rows.example_ids[0]),
            ends=end_tokens(model.model, self.tokenizer),
            trained_on="chat" if self.report.templated else "text",
            state=state,
        )

    def add_columns(self, add: Callable[[Examples], Examples]) -> None:
        """Let something add columns to the training and the held-out examples."""
        self.examples = add(self.examples)
        if self.held_out:
            self.held_out = (add(self.held_out[0]), self.held_out[1])

    def measured(self, loss: RowLoss) -> Evaluate:
        """The loss and its metrics over all held-out rows."""
        tokens, ctx = self.max_tokens, self.ctx
        return lambda loaded: measure(loss, loaded[0], tokens, ctx.device, ctx.ranks)


FEW_STEPS = 10
"""Of fewer, most belong to the warm-up and the decay of the learning rate."""


def say_few_steps(steps: int, examples: int, batch_size: int) -> None:
    """Say that a run has few steps because its data are few for its batch.

    Args:
        steps: of the whole run.
        examples: of the data set.
        batch_size: examples of a step.
    """
    if steps < FEW_STEPS and examples < FEW_STEPS * batch_size:
        smaller = max(1, examples // FEW_STEPS)
        say(
            f"steps: {steps} only, from {pluralize(examples, 'example')} at train.batch_size="
            f"{batch_size}. Try train.batch_size={smaller}, or more train.epochs"
        )


def require_context(examples: Examples, model: ModelWrapper, name: str = "model") -> None:
    """Refuse rows that are longer than the model's positions.

    Args:
        examples: of a whole data set.
        model: is given their rows.
        name: of the model in the message.

    Raises:
        ConfigError: says how many, and the limit to set.
    """
    longest = context_length(model.model)
    lengths = np.diff(examples.row_starts)
    if longest and lengths.max() > longest:
        raise ConfigError(
            f"data.max_length: {(lengths > longest).sum()} rows are longer than the {name}'s "
            f"{longest} positions (the longest has {lengths.max()} tokens). "
            f"Try data.max_length={longest}"
        )
