"""Rows of a distillation run: prompts that the student answers, and completions of the rows."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Any

from rlhf_cli.console import muted
from rlhf_cli.data.dataset import (
    first_held_out_record_type,
    load_eval_examples,
    load_examples,
)
from rlhf_cli.data.examples import Examples
from rlhf_cli.data.prompts import PromptEncoder
from rlhf_cli.data.records.types import PromptRecord
from rlhf_cli.models.vocabulary import require_embedded
from rlhf_cli.models.wrapper import ModelWrapper
from rlhf_cli.stages.distill.config import DistillConfig
from rlhf_cli.stages.prepare_data import require_positions
from rlhf_cli.stages.records import SFT_RECORDS
from rlhf_cli.stages.rollouts.prompts import PromptFileData, load_prompt_data
from rlhf_cli.stages.tokenizers import load_prompt_encoder

STAGE = "distill"

ROW_RECORDS = (*SFT_RECORDS, PromptRecord)
"""Record classes of held-out rows: those with completions are preferred."""


@dataclass(frozen=True, kw_only=True)
class DistillData(PromptFileData):
    """Prompts of a distillation run, and examples of prompt and completion.

    Attributes:
        completions: training examples, where some rows keep their completions; else None.
        held_out_completions: held-out examples, where the held-out rows have completions and the
            teacher can score them; else None.
    """

    completions: Examples | None
    held_out_completions: Examples | None

    def require_fits(self, model: ModelWrapper, name: str = "model") -> None:
        """Check that prompts, responses and completions fit a model."""
        super().require_fits(model, name)
        for examples in (self.completions, self.held_out_completions):
            if examples is not None:
                require_positions(examples, model, name)
                require_embedded(examples, model.model, name)


def prepare_completions(cfg: DistillConfig) -> None:
    """Tokenize the completions before several processes start."""
    encoder = load_prompt_encoder(cfg)
    _load_completions(cfg, encoder, cached_only=False)


def load_distill_data(cfg: DistillConfig, *, prepared: bool) -> DistillData:
    """Load the rows of a run whose student answers prompts.

    Args:
        cfg: the whole configuration.
        prepared: whether the completions were tokenized before the processes started.
    """
    found = load_prompt_data(cfg, STAGE)
    # `prepare_completions` has already printed the report on these rows
    with muted() if prepared else contextlib.nullcontext():
        train, held_out = _load_completions(cfg, found.encoder, cached_only=prepared)
    return DistillData(**vars(found), completions=train, held_out_completions=held_out)


def _load_completions(
    cfg: DistillConfig, encoder: PromptEncoder, *, cached_only: bool
) -> tuple[Examples | None, Examples | None]:
    """Training and held-out examples of prompt and completion, each where it is needed."""
    options: dict[str, Any] = {"as_messages": encoder.as_message, "cached_only": cached_only}
    tokenizer, train, held_out = encoder.tokenizer, None, None
    if cfg.completions_per_step:
        train, _ = load_examples(cfg.data, STAGE, tokenizer, SFT_RECORDS, cfg.seed, **options)
    if has_held_out_completions(cfg):
        loaded = load_eval_examples(cfg.data, STAGE, tokenizer, SFT_RECORDS, **options)
        held_out = loaded[0] if loaded else None
    return train, held_out


def has_held_out_completions(cfg: DistillConfig) -> bool:
    """Whether the held-out rows have completions that the teacher can score whole."""
    if cfg.teacher_is_server:
        return False
    return first_held_out_record_type(cfg.data, STAGE, ROW_RECORDS) in SFT_RECORDS


def as_rows_config(cfg: DistillConfig) -> DistillConfig:
    """The configuration with `template=auto` decided, for examples of prompt and completion."""
    if cfg.template != "auto":
        return cfg
    as_message = load_prompt_encoder(cfg).as_message
    return replace(cfg, template="always" if as_message else "never")
