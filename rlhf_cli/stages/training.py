"""The steps that training stages share: open the run, prepare the model, train, save the result."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_cli.console import logger
from rlhf_cli.context import (
    RunContext,
    create_context,
    memory_device,
    use_deterministic_algorithms,
)
from rlhf_cli.data.examples import rows_of
from rlhf_cli.data.loader import ExampleLoader
from rlhf_cli.data.report import DataReport, pluralize
from rlhf_cli.data.tokens.chat_template import turn_end
from rlhf_cli.diagnosis.at_end import log_diagnosis
from rlhf_cli.distributed.ranks import divide_ranks
from rlhf_cli.memory.estimate import Rows
from rlhf_cli.memory.phase import RECORD
from rlhf_cli.models.liger import require_liger
from rlhf_cli.models.load import enable_activation_checkpointing
from rlhf_cli.models.parameters import cast_for_compute
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.router import report_balancing_loss
from rlhf_cli.models.sharding import gather_by_name
from rlhf_cli.models.torch_compile import compile_layers, require_compiler
from rlhf_cli.models.wrapper import ModelWrapper
from rlhf_cli.preflight.models import peak_learning_rate
from rlhf_cli.rollout.stopping import add_end_token, end_token_ids
from rlhf_cli.stages.config import StageConfig
from rlhf_cli.stages.fixed_samples import FixedSamples, prompts_of_examples
from rlhf_cli.stages.prepare_data import RunData, StageData
from rlhf_cli.train.config import TrainConfig
from rlhf_cli.train.evaluation import evaluate_loss
from rlhf_cli.train.export import save_model
from rlhf_cli.train.loop import fit
from rlhf_cli.train.metrics import Trackers
from rlhf_cli.train.optim import require_device
from rlhf_cli.train.resume import (
    StartPoint,
    check_resumable,
    find_checkpoint,
    require_equal_inputs,
    run_fingerprint,
)
from rlhf_cli.train.row_loss import RowLoss
from rlhf_cli.train.step_source import StageState
from rlhf_cli.train.task import Evaluate, RunResult, TrainingTask
from rlhf_cli.train.throughput import fit_micro_batch_tokens
from rlhf_cli.train.update import Loss

FEW_STEPS = 10
"""With fewer steps than this, warm-up and decay of the learning rate take most of the run."""


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that is decided about a run before its first step.

    Attributes:
        cfg: the whole configuration.
        ctx: device, compute type, run folder and ranks.
        tokenizer: saved beside the result.
        report: on the training rows.
        held_out_report: on the held-out rows, or None.
        start: checkpoint to continue from, and the run's fingerprint.
    """

    cfg: StageConfig
    ctx: RunContext
    tokenizer: Any
    report: DataReport
    held_out_report: DataReport | None
    start: StartPoint

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens of one forward and backward pass."""
        found: int = self.start.fingerprint["micro_batch_tokens"]
        return self.cfg.train.micro_batch_tokens or found

    @property
    def train(self) -> TrainConfig:
        """`cfg.train` with the stage's default learning rate filled in."""
        return replace(self.cfg.train, lr=peak_learning_rate(self.cfg))


def open_run(cfg: StageConfig, out: Path) -> RunContext:
    """Set up device, precision, seed and ranks, and check what the configuration needs of them.

    Raises:
        ConfigError: the optimizer, kernels or compiler it names do not work on this device.
    """
    if cfg.train.deterministic:
        use_deterministic_algorithms()
    ctx = create_context(cfg.train.precision, cfg.seed, out, cfg.launch)
    ctx = replace(ctx, ranks=divide_ranks(ctx.ranks, cfg.launch.context_parallel))
    if ctx.ranks.context.world_size > 1:
        logger.info(
            f"context parallel: {pluralize(ctx.ranks.data.world_size, 'group')} of "
            f"{ctx.ranks.context.world_size} processes, which compute the tokens of each "
            "micro-batch together"
        )
    require_device(cfg.train, ctx.device)
    require_liger(cfg.kernels, ctx.device)
    require_compiler(cfg.train.compile, ctx.device)
    return ctx


def prepare_training(
    cfg: StageConfig, ctx: RunContext, model: ModelWrapper, data: RunData
) -> TrainingPlan:
    """Prepare a loaded model for training, and find the checkpoint to continue from.

    Args:
        cfg: the whole configuration.
        ctx: what `open_run` gave.
        model: is compiled, or set to recompute activations, as `cfg` says.
        data: tokenizer and reports.

    Raises:
        CheckpointError: the run cannot be continued here.
    """
    report_balancing_loss(model.model, added=cfg.balances_experts)
    if cfg.train.gradient_checkpointing:
        enable_activation_checkpointing(model)
    if cfg.train.compile:
        with cast_for_compute(model, ctx.compute):
            compile_layers(model)
    checkpoint = find_checkpoint(ctx.out, cfg.resume, ctx.ranks)
    tokenizer, report, held_out = data.tokenizer, data.report, data.held_out_report
    rows = rows_of(data.train) if isinstance(data, StageData) else Rows.of_config(cfg)
    tokens, limit = fit_micro_batch_tokens(cfg, rows, ctx)
    logger.info(f"micro-batches: {tokens} tokens a pass ({limit})")
    RECORD.rows = rows
    fingerprint = run_fingerprint(tokens, ctx, cfg.launch, model, tokenizer, report, held_out)
    require_equal_inputs(fingerprint, ctx.ranks)
    start = StartPoint(checkpoint, check_resumable(checkpoint, fingerprint))
    return TrainingPlan(cfg, ctx, tokenizer, report, held_out, start)


def train_and_save(
    plan: TrainingPlan,
    model: ModelWrapper,
    loss: Loss,
    data: StageData,
    *,
    evaluate: Evaluate | None = None,
    state: StageState | None = None,
) -> dict[str, Any]:
    """Train a model on a stage's examples, and save the result.

    Args:
        plan: what `prepare_training` gave.
        model: is trained.
        loss: of a micro-batch.
        data: training and held-out examples.
        evaluate: metrics of the held-out examples, where there are any; by default those of `loss`,
            which is then a `RowLoss`.
        state: what the stage keeps from step to step.

    Returns:
        Summary of the run for the manifest.
    """
    cfg, examples = plan.cfg, data.train
    if data.report.templated:
        add_end_token(model.model, data.tokenizer, turn_end(data.tokenizer))
    tokens, ranks = plan.micro_batch_tokens, plan.ctx.ranks
    source = ExampleLoader(examples, cfg.data, cfg.train, cfg.seed, tokens, ranks)
    logger.info(
        f"steps: {source.total_steps} of {cfg.train.batch_size} examples; {tokens} tokens a pass"
    )
    if cfg.train.max_steps <= 0:
        log_few_steps(source.total_steps, len(examples), cfg.train.batch_size)
    task = TrainingTask(
        policy=model,
        source=source,
        loss=loss,
        locate=lambda rows: examples.location(rows.example_ids[0]),
        evaluate=None if data.held_out is None else evaluate or _evaluation_of(loss, plan, data),
        state=state or StageState(),
        samples=_fixed_samples(plan, model, data),
        finds_spikes=True,
    )
    return fit_and_save(plan, task, end_token_ids(model.model, data.tokenizer))


def _fixed_samples(plan: TrainingPlan, model: ModelWrapper, data: StageData) -> FixedSamples | None:
    """The prompts that a language model answers at each evaluation."""
    if not isinstance(model, Policy) or not plan.cfg.log.sample_prompts:
        return None
    rows = data.train if data.held_out is None else data.held_out
    prompts = prompts_of_examples(rows, data.tokenizer, model, plan.cfg.log.sample_prompts)
    return FixedSamples(plan.ctx.out, model, data.tokenizer, prompts, plan.ctx.ranks)


def _evaluation_of(loss: Loss, plan: TrainingPlan, data: StageData) -> Evaluate:
    """Loss and metrics over all held-out examples."""
    assert isinstance(loss, RowLoss)
    held_out = data.held_out
    assert held_out is not None
    tokens, ctx = plan.micro_batch_tokens, plan.ctx
    return lambda: evaluate_loss(loss, held_out, tokens, ctx.device, ctx.ranks)


def fit_and_save(plan: TrainingPlan, task: TrainingTask, ends: Sequence[int]) -> dict[str, Any]:
    """Run the training loop, save the result, and summarize the run.

    Args:
        plan: what `prepare_training` gave.
        task: model, steps, loss and evaluation.
        ends: tokens that end a response of the result.

    Returns:
        Summary of the run for the manifest.
    """
    cfg, ctx = plan.cfg, plan.ctx
    names = cfg.log.trackers if ctx.ranks.is_main else []
    with contextlib.closing(Trackers(names, ctx.out, asdict(cfg))) as trackers:
        result = fit(task, plan.train, ctx, plan.start, trackers)
    trained_on = "chat" if plan.report.templated else "text"
    policy = task.policy
    save = partial(save_model, policy, plan.tokenizer, ends, trained_on, cfg, ctx, result)
    if ctx.mesh is not None and policy.adapters is None:
        save(whole=partial(gather_by_name, policy, result.weights))
    else:
        ctx.ranks.run_on_main(save)
    logger.info(f"result: {ctx.out / 'model'}")
    summary = _summary(plan, result)
    if ctx.ranks.is_main:
        log_diagnosis(ctx.out, summary)
    return summary


def _summary(plan: TrainingPlan, result: RunResult) -> dict[str, Any]:
    held_out = plan.held_out_report
    return {
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "processes": plan.ctx.ranks.world_size,
        "peak_memory_bytes": sum(result.peak_memory),
        "peak_memory_bytes_by_rank": result.peak_memory,
        "device_memory_bytes": memory_device(plan.ctx.device, plan.ctx.compute).total_bytes,
        "peak_memory_bytes_by_phase": dict(RECORD.peaks),
        "device": str(plan.ctx.device),
        "machinery": plan.start.fingerprint,
        "data": plan.report.to_dict(),
        "held_out_data": held_out.to_dict() if held_out else None,
        "before": result.before,
        "after": result.after,
        "intervals": result.intervals,
    }


def log_few_steps(steps: int, examples: int, batch_size: int) -> None:
    """Say that a run has few steps because it has few examples for its batch size.

    Args:
        steps: of the whole run.
        examples: in the data set.
        batch_size: examples of a step.
    """
    if steps < FEW_STEPS and examples < FEW_STEPS * batch_size:
        smaller = max(1, examples // FEW_STEPS)
        logger.info(
            f"steps: {steps} only, from {pluralize(examples, 'example')} at train.batch_size="
            f"{batch_size}. Try train.batch_size={smaller}, or more train.epochs"
        )
