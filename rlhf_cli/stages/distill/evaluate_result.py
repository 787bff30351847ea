"""Evaluation of the result of a distillation run, by `rlhf evaluate`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from rlhf_cli.context import RunContext
from rlhf_cli.data.dataset import LoadedExamples
from rlhf_cli.data.prompts import PromptEncoder, encode_prompts, load_held_out_prompts
from rlhf_cli.data.report import DataReport
from rlhf_cli.errors import DataError
from rlhf_cli.evaluation.intervals import Measurement
from rlhf_cli.memory.training import MOST_TOKENS
from rlhf_cli.models.load import LoadInputs, load_frozen
from rlhf_cli.models.policy import Policy
from rlhf_cli.rollout.engines import LocalEngine
from rlhf_cli.rollout.stopping import add_end_token, end_token_ids
from rlhf_cli.stages.distill.config import DistillConfig
from rlhf_cli.stages.distill.data import as_rows_config, has_held_out_completions
from rlhf_cli.stages.distill.evaluate import (
    HeldOutResponses,
    measurements,
    sampled_divergence,
    whole_divergence,
)
from rlhf_cli.stages.distill.loss import divergence_of
from rlhf_cli.stages.distill.teacher import load_teacher
from rlhf_cli.stages.distill.teacher_server import open_teacher
from rlhf_cli.stages.evaluation import Evaluation, evaluate_rows, load_held_out
from rlhf_cli.stages.prepare_data import RunData, log_max_length, require_positions
from rlhf_cli.stages.records import SFT_RECORDS
from rlhf_cli.stages.rollouts.prompts import EncodedPrompts
from rlhf_cli.stages.rollouts.worker import RolloutWorker
from rlhf_cli.stages.tokenizers import load_prompt_encoder


def open_evaluation(cfg: DistillConfig, stage: str) -> Evaluation:
    """Load the held-out rows of a run; the result is compared with its teacher on them.

    Args:
        cfg: of the run; `model.path` is its result, `data.eval` the rows.
        stage: names the shipped rows, and stands in errors.

    Raises:
        DataError: there are no rows.
    """
    encoder = load_prompt_encoder(cfg)
    if has_held_out_completions(cfg):
        loaded = load_held_out(as_rows_config(cfg), stage, encoder.tokenizer, SFT_RECORDS)
        return partial(_on_completions, cfg, encoder.tokenizer, loaded)
    log_max_length(cfg.data, cfg.model)
    prompts = load_held_out_prompts(cfg.data, stage)
    if prompts is None:
        raise DataError(
            f"data.path: none given, and {cfg.model.path} held out no rows. Try data=FILE"
        )
    most = cfg.data.max_length - cfg.sampling.max_new_tokens
    encoded = encode_prompts(prompts, encoder, most, cfg.data.truncation)
    return partial(_on_responses, cfg, encoder, encoded)


def _on_completions(
    cfg: DistillConfig, tokenizer: Any, loaded: LoadedExamples, ctx: RunContext
) -> list[Measurement]:
    student = load_frozen(Policy, cfg, LoadInputs(tokenizer, ctx))
    teacher = load_teacher(cfg, student, _run_data(tokenizer), ctx)
    require_positions(loaded[0], teacher.policy, "teacher")
    values = whole_divergence(student, teacher, divergence_of(cfg))
    columns = evaluate_rows(values, student, loaded[0], cfg, ctx)
    return measurements({name: torch.from_numpy(column) for name, column in columns.items()})


def _on_responses(
    cfg: DistillConfig, encoder: PromptEncoder, encoded: EncodedPrompts, ctx: RunContext
) -> list[Measurement]:
    tokenizer = encoder.tokenizer
    student = load_frozen(Policy, cfg, LoadInputs(tokenizer, ctx))
    add_end_token(student.model, tokenizer, encoder.turn_end)
    server = None
    if cfg.teacher_is_server:
        server = open_teacher(cfg, tokenizer, student, max(map(len, encoded[1])))
        values = sampled_divergence(student)
    else:
        teacher = load_teacher(cfg, student, _run_data(tokenizer), ctx)
        values = whole_divergence(student, teacher, divergence_of(cfg))
    sampling = replace(cfg.sampling, cuda_graphs=False)  # the run may have had a GPU, this has none
    worker = RolloutWorker(
        encoded,
        LocalEngine(student, tokenizer, sampling),
        tokenizer,
        end_token_ids(student.model, tokenizer),
        samples=1,
        batch_size=cfg.train.batch_size,
    )
    tokens = cfg.train.micro_batch_tokens or MOST_TOKENS[ctx.device.type]
    held_out = HeldOutResponses(worker, values, tokens, ctx.device, ctx.ranks, server)
    with torch.no_grad():
        return held_out.measure()


def _run_data(tokenizer: Any) -> RunData:
    """The student's tokenizer, for the teacher; rows are checked by themselves."""
    return RunData(tokenizer=tokenizer, report=DataReport(), held_out_report=None)
