"""Train a model and save it, whatever the rows of the stage are."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from rlhf_cli.context import open_context, say, use_deterministic_algorithms
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.report import DataReport
from rlhf_cli.models.compiled import compile_layers, require_compiler
from rlhf_cli.models.freeze import freeze
from rlhf_cli.models.layers import require_liger, taken
from rlhf_cli.models.load import Role, recompute_activations
from rlhf_cli.models.precision import as_computed
from rlhf_cli.models.router import tell_of_balance
from rlhf_cli.models.tokenizer import tokenizer_hash
from rlhf_cli.models.wrapper import ModelWrapper
from rlhf_cli.preflight.models import peak_learning_rate
from rlhf_cli.stages.config import StageConfig
from rlhf_cli.train.artifact import save_model
from rlhf_cli.train.budget import micro_batch_tokens
from rlhf_cli.train.loop import RunResult, fit
from rlhf_cli.train.machinery import agree_with, find_checkpoint
from rlhf_cli.train.optim import require_device
from rlhf_cli.train.source import StageState, StepSource
from rlhf_cli.train.tracking import Trackers
from rlhf_cli.train.update import Loss

Evaluate = Callable[[], dict[str, float]]


class Training(ABC):
    """One run of a stage: where it goes on, its loop, its result.

    Attributes:
        cfg: the whole configuration.
        ctx: device, compute type, run folder and ranks.
        tokenizer: saved beside the result; set by the stage.
        report: of the training rows; set by the stage.
        held_out_report: of the held-out rows, or none.
    """

    tokenizer: Any
    report: DataReport
    held_out_report: DataReport | None = None

    def __init__(self, cfg: StageConfig, out: Path) -> None:
        self.cfg = cfg
        if cfg.train.deterministic:
            use_deterministic_algorithms()
        self.ctx = open_context(cfg.train.precision, cfg.seed, out)
        require_device(cfg.train, self.ctx.device)
        require_liger(cfg.kernels, self.ctx.device)
        require_compiler(cfg.train.compile, self.ctx.device)

    def settle(self, model: Role) -> Role:
        """Take the model that is trained, and settle how: how rows are cut, where to go on.

        Raises:
            CheckpointError: the run cannot be continued here.
        """
        if self.cfg.model.freeze:
            freeze(model.model, self.cfg.model.freeze, self.ctx.compute)
        tell_of_balance(model.model, added=self.cfg.balances_experts)
        if self.cfg.train.gradient_checkpointing:
            recompute_activations(model)
        if self.cfg.train.compile:
            with as_computed(model, self.ctx.compute):
                compile_layers(model)
        self.checkpoint = find_checkpoint(self.ctx.out, self.cfg.resume)
        self.machinery = agree_with(self.checkpoint, self._machinery(model))
        self.max_tokens = self.cfg.train.micro_batch_tokens or self.machinery["micro_batch_tokens"]
        return model

    @abstractmethod
    def require_positions(self, model: ModelWrapper, name: str = "model") -> None:
        """Refuse rows that are longer than a model's positions.

        Raises:
            ConfigError: says how many, and the limit to set.
        """

    def fit_and_save(
        self,
        model: ModelWrapper,
        loss: Loss,
        source: StepSource,
        evaluate: Evaluate | None,
        *,
        where: Callable[[TokenBatch], str],
        ends: Sequence[int],
        trained_on: str,
        state: StageState | None = None,
    ) -> dict[str, Any]:
        """Train, save the result, and sum up.

        Args:
            model: what `settle` was given.
            loss: of a micro-batch.
            source: yields steps.
            evaluate: held-out metrics; called without gradients.
            where: the rows of one example -> `file:line`, to name one that fails.
            ends: tokens that end a response of the result.
            trained_on: `chat` where the rows went through the template, else `text`.
            state: what the stage keeps from step to step.

        Returns:
            What the manifest tells of the run.
        """
        cfg, ctx = self.cfg, self.ctx
        names = cfg.log.trackers if ctx.ranks.main else []
        with contextlib.closing(Trackers(names, ctx.out, asdict(cfg))) as trackers:
            result = fit(
                model,
                source,
                loss,
                cfg.train,
                ctx,
                lr=peak_learning_rate(cfg),
                where=where,
                evaluate=evaluate,
                checkpoint=self.checkpoint,
                machinery=self.machinery,
                trackers=trackers,
                state=state,
            )

        def save() -> None:
            save_model(model, self.tokenizer, ends, trained_on, cfg, ctx, result)

        ctx.ranks.on_main(save)
        say(f"result: {ctx.out / 'model'}")
        return self._summary(result)

    def _machinery(self, model: ModelWrapper) -> dict[str, Any]:
        """What a result depends on beside the configuration, to the last bit."""
        cfg, ctx = self.cfg.train, self.ctx
        found = cfg.micro_batch_tokens or micro_batch_tokens(
            model,
            model.model.config.get_text_config(),
            ctx.device,
            ctx.compute,
            cfg.gradient_checkpointing,
            ctx.ranks.size,
        )
        return {
            "micro_batch_tokens": min(ctx.ranks.gather(found)),  # GPUs of one run may differ
            "processes": ctx.ranks.size,
            "threads": torch.get_num_threads(),
            "attention": model.model.config._attn_implementation,
            "logprobs": model.implementation.name,
            "layers": taken(model.model) or "own",
            "compute": ctx.compute_name,
            "tokenizer": tokenizer_hash(self.tokenizer),
            "data": self.report.sha256,
            "held_out_data": self.held_out_report.sha256 if self.held_out_report else "",
        }

    def _summary(self, result: RunResult) -> dict[str, Any]:
        return {
            "steps": result.steps,
            "seconds": round(result.seconds, 1),
            "processes": self.ctx.ranks.size,
            "peak_memory_bytes": sum(result.peak_memory),
            "peak_memory_bytes_by_rank": result.peak_memory,
            "device": str(self.ctx.device),
            "machinery": self.machinery,
            "data": self.report.to_dict(),
            "held_out_data": self.held_out_report.to_dict() if self.held_out_report else None,
            "before": result.before,
            "after": result.after,
        }
