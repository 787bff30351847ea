"""Which evaluation of a model the rows ask for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from rlhf_cli.commands.evaluate.subject import Subject, as_rows_config
from rlhf_cli.data.records.corpus import first_held_out
from rlhf_cli.data.records.record import PromptRecord
from rlhf_cli.registry import EVALUATORS
from rlhf_cli.stages import judged, likelihood
from rlhf_cli.stages.config import StageConfig
from rlhf_cli.stages.dpo.config import DPOConfig
from rlhf_cli.stages.dpo.run import records_of
from rlhf_cli.stages.held_out import Evaluation
from rlhf_cli.stages.labelled import RECORDS as LABELLED

Open = Callable[[StageConfig, str], Evaluation]


def open_evaluation(subject: Subject, *, given: bool) -> Evaluation:
    """Open the rows of a model, and choose what is measured on them.

    A model has the metrics of its own stage on rows that the stage takes; any language model has
    the likelihood of texts, responses and chats, and the log-probs of judged responses.

    Args:
        subject: the model.
        given: `data.path` names the rows; else they are those that the run held out, which are of
            its own stage.

    Raises:
        DataError: the rows cannot be read, or no metric of the model is for such rows.
    """
    cfg, stage = subject.config, subject.stage
    own = _own(stage)
    if not given or stage == "reward":
        return own(cfg, stage)
    records = _records(cfg, stage)
    others = [record for record in _ANY if record not in records]
    first = first_held_out(cfg.data, stage, (*records, *others) if stage != "ppo" else _PPO)
    if first in records or first is None:
        return own(cfg, stage)
    return _any_model(first)(as_rows_config(cfg), stage)


_ANY = (*likelihood.RECORDS, *judged.RECORDS)
_PPO = (*_ANY, PromptRecord)
"""A row that has a response too is measured by it; `data.format=prompt` reads its prompt alone."""


def _own(stage: str) -> Open:
    module, _, function = EVALUATORS[stage].partition(":")
    found: Open = getattr(import_module(module), function)
    return found


def _records(cfg: StageConfig, stage: str) -> tuple[type, ...]:
    """The records that a stage's own evaluation takes."""
    if isinstance(cfg, DPOConfig):
        return records_of(cfg)
    own = {"bco": LABELLED, "ppo": (PromptRecord,)}
    return own.get(stage, likelihood.RECORDS)


def _any_model(record: type) -> Open:
    return judged.open_evaluation if record in judged.RECORDS else likelihood.open_evaluation
