"""Tokenizers as a stage's rows and prompts need them, loaded without torch."""

from __future__ import annotations

from typing import Any

from rlhf_cli.console import logger
from rlhf_cli.data.dataset import has_chat_records, iter_texts
from rlhf_cli.data.prompts import PromptEncoder, uses_chat_template
from rlhf_cli.data.report import DataReport
from rlhf_cli.models.tokenizer import add_chatml, load_tokenizer
from rlhf_cli.stages.config import ResponseRowsConfig, StageConfig
from rlhf_cli.stages.records import Records
from rlhf_cli.stages.rollouts.config import RolloutSettings


def load_trained_tokenizer(cfg: StageConfig, stage: str, records: Records) -> Any:
    """Load the tokenizer of the configuration, or train it on the rows.

    Args:
        cfg: the whole configuration.
        stage: names the shipped rows.
        records: record classes that the stage reads, the preferred first.
    """
    return load_tokenizer(cfg.model, lambda: iter_texts(cfg.data, stage, records))


def load_row_tokenizer(
    cfg: StageConfig, stage: str, records: Records
) -> tuple[Any, tuple[int, ...]]:
    """Load the tokenizer of a stage's rows, with ChatML added if chats have no template.

    Arguments are those of `load_trained_tokenizer`.

    Returns:
        The tokenizer, and the ids that were added to it and that the model has never seen.
    """
    tokenizer = load_trained_tokenizer(cfg, stage, records)
    needs_template = not tokenizer.chat_template and (
        cfg.as_messages or has_chat_records(cfg.data, stage, records)
    )
    return tokenizer, tuple(add_chatml(tokenizer) if needs_template else ())


def load_prompt_encoder(cfg: RolloutSettings) -> PromptEncoder:
    """Load the tokenizer of a run's prompts, and build the prompt encoder around it."""
    tokenizer, model = load_tokenizer(cfg.model), cfg.model
    as_message = uses_chat_template(cfg.template, model.path, model.revision, tokenizer)
    return PromptEncoder(tokenizer, as_message=as_message)


def log_plain_text(cfg: StageConfig, tokenizer: Any, report: DataReport) -> None:
    """Say that rows of text are joined without the model's chat template, and the key to set.

    Args:
        cfg: the whole configuration; only `template=auto` leaves the choice open.
        tokenizer: the model's.
        report: on the rows.
    """
    if not isinstance(cfg, ResponseRowsConfig) or cfg.template != "auto":
        return
    model = cfg.model
    chats = uses_chat_template("auto", model.path, model.revision, tokenizer)
    if chats and not report.templated and not model.from_scratch:
        logger.info(
            f"warning: template: {model.path} has a chat template, and the rows are text, which is "
            "joined without it. template=always makes prompts the user's messages and responses "
            "the assistant's; template=never leaves this line out"
        )
