"""On-policy distillation: training, and evaluation of a finished run."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_cli.console import logger
from rlhf_cli.context import RunContext
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.report import pluralize
from rlhf_cli.models.load import LoadInputs, load_policy
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.sharding import gathered
from rlhf_cli.rollout.cuda_graphs import capture, require_cuda
from rlhf_cli.rollout.engines import Engine
from rlhf_cli.rollout.probe import require_cuda_graphs
from rlhf_cli.rollout.stopping import add_end_token, end_token_ids
from rlhf_cli.stages.distill.config import DistillConfig
from rlhf_cli.stages.distill.data import (
    STAGE,
    DistillData,
    as_rows_config,
    load_distill_data,
    prepare_completions,
)
from rlhf_cli.stages.distill.evaluate import (
    HeldOutResponses,
    measure_completions,
    sampled_divergence,
    whole_divergence,
)
from rlhf_cli.stages.distill.loss import SAMPLED, DistillLoss, divergence_of
from rlhf_cli.stages.distill.source import (
    DistillSource,
    TeacherServer,
    count_steps,
    load_completion_steps,
)
from rlhf_cli.stages.distill.teacher import TeacherModel, load_teacher
from rlhf_cli.stages.distill.teacher_server import open_teacher
from rlhf_cli.stages.fixed_samples import FixedSamples, prompts_of_set
from rlhf_cli.stages.prepare_data import load_stage_data, prepare_rows
from rlhf_cli.stages.records import SFT_RECORDS
from rlhf_cli.stages.rollouts.engine import create_engine
from rlhf_cli.stages.rollouts.prompts import EncodedPrompts
from rlhf_cli.stages.rollouts.worker import RolloutWorker
from rlhf_cli.stages.training import (
    TrainingPlan,
    fit_and_save,
    open_run,
    prepare_training,
    train_and_save,
)
from rlhf_cli.train.evaluation import HeldOutMetrics, from_measurements
from rlhf_cli.train.task import Evaluate, TrainingTask


def prepare(cfg: DistillConfig, out: Path) -> None:
    """Tokenize completions before several processes start."""
    if cfg.generates:
        prepare_completions(cfg)
    else:
        prepare_rows(as_rows_config(cfg), out, STAGE, SFT_RECORDS)


def run(cfg: DistillConfig, out: Path) -> dict[str, Any]:
    """Train a student towards its teacher, on its own responses or on completions."""
    ctx = open_run(cfg, out)
    require_cuda(cfg.sampling, ctx.device)
    return _train_on_responses(cfg, ctx) if cfg.generates else _train_on_rows(cfg, ctx)


def _train_on_rows(cfg: DistillConfig, ctx: RunContext) -> dict[str, Any]:
    """Supervised distillation: the rows' completions alone."""
    data = load_stage_data(as_rows_config(cfg), ctx, STAGE, SFT_RECORDS)
    student = load_policy(cfg, LoadInputs(data.tokenizer, ctx, data.new_tokens))
    data.require_fits(student)
    teacher = load_teacher(cfg, student, data, ctx)
    plan = prepare_training(cfg, ctx, student, data)
    values = whole_divergence(student, teacher, divergence_of(cfg))

    def evaluate() -> HeldOutMetrics:
        assert data.held_out is not None
        tokens = plan.micro_batch_tokens
        return from_measurements(
            measure_completions(values, data.held_out, tokens, ctx.device, ctx.ranks)
        )

    loss = DistillLoss(cfg, student, teacher)
    return train_and_save(plan, student, loss, data, evaluate=evaluate)


@dataclass(frozen=True)
class _Student:
    """The student with what generates and scores its responses."""

    policy: Policy
    engine: Engine
    teacher: TeacherModel | None
    server: TeacherServer | None


def _train_on_responses(cfg: DistillConfig, ctx: RunContext) -> dict[str, Any]:
    """On-policy distillation: the student answers prompts, as many as the configuration says."""
    data = load_distill_data(cfg, prepared=ctx.ranks.world_size > 1)
    policy = _load_student(cfg, ctx, data)
    teacher = server = None
    if cfg.teacher_is_server:
        server = ctx.ranks.call_together(
            lambda: open_teacher(cfg, data.tokenizer, policy, data.longest_prompt)
        )
    else:
        teacher = load_teacher(cfg, policy, data, ctx)
    plan = prepare_training(cfg, ctx, policy, data)
    with contextlib.closing(create_engine(cfg, policy, data, plan, STAGE)) as engine:
        student = _Student(policy, engine, teacher, server)
        loss = DistillLoss(cfg, policy, student.teacher)
        steps = count_steps(cfg, data)
        worker = _worker(cfg, data.prompts, student.engine, data, policy)
        held_out = None
        if data.held_out:
            single = replace(cfg, samples_per_prompt=1)
            held_out = _worker(single, data.held_out, student.engine, data, policy)
        source = DistillSource(
            cfg,
            worker,
            loss,
            plan,
            steps,
            completions=load_completion_steps(cfg, data, plan, steps),
            server=student.server,
        )
        _log_steps(cfg, steps)
        task = TrainingTask(
            policy=policy,
            source=source,
            loss=loss,
            locate=partial(_locate, data),
            evaluate=_evaluation(cfg, data, student, plan, source, held_out) if held_out else None,
            samples=_fixed_samples(cfg, policy, ctx, held_out or worker),
        )
        return fit_and_save(plan, task, end_token_ids(policy.model, data.tokenizer))


def _load_student(cfg: DistillConfig, ctx: RunContext, data: DistillData) -> Policy:
    policy = load_policy(cfg, LoadInputs(data.tokenizer, ctx))
    add_end_token(policy.model, data.tokenizer, data.encoder.turn_end)
    data.require_fits(policy)
    if cfg.sampling.cuda_graphs:
        with gathered(policy):
            require_cuda_graphs(policy.model, capture)
    return policy


def _worker(
    cfg: DistillConfig, prompts: EncodedPrompts, engine: Engine, data: DistillData, policy: Policy
) -> RolloutWorker:
    return RolloutWorker(
        prompts,
        engine,
        data.tokenizer,
        end_token_ids(policy.model, data.tokenizer),
        samples=cfg.samples_per_prompt,
        batch_size=cfg.train.batch_size,
    )


def _evaluation(
    cfg: DistillConfig,
    data: DistillData,
    student: _Student,
    plan: TrainingPlan,
    source: DistillSource,
    worker: RolloutWorker,
) -> Evaluate:
    """Evaluation on held-out completions, or on a worker's responses to held-out prompts."""
    policy, ranks, tokens = student.policy, plan.ctx.ranks, plan.micro_batch_tokens
    if student.teacher is None:
        values = sampled_divergence(policy)
    else:
        values = whole_divergence(policy, student.teacher, divergence_of(cfg))
    examples = data.held_out_completions
    if examples is not None:
        return lambda: from_measurements(
            measure_completions(values, examples, tokens, policy.device, ranks)
        )
    held_out = HeldOutResponses(worker, values, tokens, policy.device, ranks, student.server)

    def evaluate() -> HeldOutMetrics:
        source.pipeline.hand_over()
        return from_measurements(held_out.measure())

    return evaluate


def _fixed_samples(
    cfg: DistillConfig, policy: Policy, ctx: RunContext, worker: RolloutWorker
) -> FixedSamples | None:
    """The prompts that the student answers at each evaluation."""
    count = cfg.log.sample_prompts
    if not count:
        return None
    found = prompts_of_set(worker.prompt_text, worker.prompt_ids, policy, count)
    return FixedSamples(ctx.out, policy, worker.tokenizer, found, ctx.ranks)


def _locate(data: DistillData, rows: TokenBatch) -> str:
    """`file:line` of the first of some rows."""
    number = rows.example_ids[0]
    if SAMPLED in rows.token_columns or data.completions is None:
        return data.prompts[0].location(number)
    return data.completions.location(number)


def _log_steps(cfg: DistillConfig, total: int) -> None:
    """Print how many steps the run has, and what a step is."""
    parts = [
        f"{pluralize(cfg.prompts_per_step, 'prompt')}, "
        f"{pluralize(cfg.samples_per_prompt, 'response')} each"
    ]
    if cfg.completions_per_step:
        parts.append(pluralize(cfg.completions_per_step, "completion"))
    logger.info(f"steps: {total} of {' and '.join(parts)}")
