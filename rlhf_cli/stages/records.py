"""Record classes that each stage reads, the preferred first."""

from __future__ import annotations

from typing import Any

from rlhf_cli.data.prompts import PROMPT_RECORDS
from rlhf_cli.data.records.types import (
    ChatRecord,
    LabelledRecord,
    PreferenceRecord,
    PromptCompletionRecord,
    RankedRecord,
    ScoredRecord,
    TextRecord,
)

Records = tuple[type, ...]

PRETRAIN_RECORDS: Records = (TextRecord,)
SFT_RECORDS: Records = (PromptCompletionRecord, ChatRecord)
LIKELIHOOD_RECORDS: Records = (TextRecord, PromptCompletionRecord, ChatRecord)
PAIRED_RECORDS: Records = (PreferenceRecord,)
UNPAIRED_RECORDS: Records = (LabelledRecord, PreferenceRecord)
PREFERENCE_RECORDS: Records = (PreferenceRecord, RankedRecord, ScoredRecord, LabelledRecord)

_OF_STAGE = {
    "pretrain": PRETRAIN_RECORDS,
    "sft": SFT_RECORDS,
    "reward": PREFERENCE_RECORDS,
    "ppo": PROMPT_RECORDS,
    "grpo": PROMPT_RECORDS,
    "dpo": PAIRED_RECORDS,
    "bco": UNPAIRED_RECORDS,
    "distill": PROMPT_RECORDS,
}


def rows_stage(stage: str, cfg: Any) -> str:
    """Name of a stage where its rows are opened: online dpo reads others than dpo."""
    return "online dpo" if stage == "dpo" and cfg.online else stage


def records_of(stage: str, cfg: Any) -> Records:
    """Return the record classes that a stage reads under its configuration.

    Args:
        stage: name of the stage.
        cfg: its configuration; `unpaired` of dpo decides between pairs and labelled responses, its
            `online` takes prompts, and `generates` of distill decides between prompts and
            completions.
    """
    if rows_stage(stage, cfg) == "online dpo":
        return PROMPT_RECORDS
    if stage == "distill" and not cfg.generates:
        return SFT_RECORDS
    unpaired = stage == "dpo" and cfg.unpaired
    return UNPAIRED_RECORDS if unpaired else _OF_STAGE[stage]
