"""A model to measure, with the settings of the run that made it.

Which evaluation of a model the rows ask for.

Measure models on held-out rows, side by side, or let a judge compare their answers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from traceback import clear_frames
from typing import Any

from rlhf_cli.commands.evaluate.config import EvaluateConfig
from rlhf_cli.commands.evaluate.judge import judge
from rlhf_cli.config.schema import no_rows
from rlhf_cli.console import logger
from rlhf_cli.context import RunContext, open_context
from rlhf_cli.data.records.corpus import first_held_out
from rlhf_cli.data.records.record import PromptRecord
from rlhf_cli.errors import DataError, Interrupted, first_line
from rlhf_cli.evaluation.table import Result, as_json, as_text
from rlhf_cli.models.config import AdapterConfig, ComparedModelConfig, ModelConfig
from rlhf_cli.runs import hub
from rlhf_cli.runs.artifact import is_reward_model
from rlhf_cli.runs.outputs import writing
from rlhf_cli.runs.settings import Settings, read_settings
from rlhf_cli.stages import judged, likelihood
from rlhf_cli.stages.config import ResponseRowsConfig, StageConfig
from rlhf_cli.stages.dpo.config import DPOConfig
from rlhf_cli.stages.dpo.run import records_of
from rlhf_cli.stages.held_out import Evaluation
from rlhf_cli.stages.labelled import RECORDS as LABELLED
from rlhf_cli.stages.registry import COMMANDS, EVALUATORS
from rlhf_cli.sweep.jobs import settings_of_job


@dataclass(frozen=True)
class Subject:
    """One model that is measured.

    Attributes:
        name: heads its column.
        stage: of the run that made it.
        config: of that run, with the result as its model and the rows to measure as `data.eval`.
        commits: `ID@REVISION` -> commit of what the run used of the hub.
    """

    name: str
    stage: str
    config: StageConfig
    commits: Mapping[str, str]


def subjects(cfg: EvaluateConfig) -> list[Subject]:
    """The models of an evaluation, in the order given.

    Raises:
        DataError: the rows that a run held out are no longer where they were.
    """
    return [
        _subject(cfg, path, name) for path, name in zip(cfg.models, names(cfg.models), strict=True)
    ]


def _subject(cfg: EvaluateConfig, path: str, name: str) -> Subject:
    settings = read_settings(path)
    if settings and no_rows(cfg.data.path):
        _require_rows(settings, path)
    stage = settings.stage if settings else _kind(path, cfg.model.revision)
    own = settings.config if settings else COMMANDS[stage].config()
    config = replace(
        own,
        model=_model(cfg, own.model, path),
        adapter=AdapterConfig(),  # the one at the path, if any, as it is
        quant=cfg.quant,
        data=cfg.data.applied_to(own.data),
        train=replace(own.train, micro_batch_tokens=cfg.micro_batch_tokens),
    )
    if cfg.template != "auto":
        config = config if stage == "ppo" else as_rows_config(config)
        config = replace(config, template=cfg.template)
    config.fit_to_model()  # as a stage does; `data` is a copy of the run's
    return Subject(name, stage, config, settings.commits if settings else {})


def as_rows_config(cfg: StageConfig) -> StageConfig:
    """The configuration with a `template` for rows with responses, where its stage has none."""
    if isinstance(cfg, ResponseRowsConfig):
        return cfg
    shared = {f.name: getattr(cfg, f.name) for f in fields(StageConfig)}
    return ResponseRowsConfig(**shared, template=getattr(cfg, "template", "auto"))


def _kind(path: str, revision: str) -> str:
    """The stage as whose result a model is measured that is no run of ours."""
    return "reward" if is_reward_model(path, revision) else "sft"


def _model(cfg: EvaluateConfig, own: ModelConfig, path: str) -> ModelConfig:
    """The result of a run, with what it was compared with in training."""
    given = vars(model_of(cfg, path))
    if not isinstance(own, ComparedModelConfig):
        return replace(own, **given)
    if own.reference == "none":
        reference, revision = "none", ""
    elif cfg.reference:
        reference, revision = cfg.reference, cfg.reference_revision
    elif own.reference in own.held:
        reference, revision = own.path, own.revision
    else:
        reference, revision = own.reference, own.reference_revision
    return replace(own, **given, reference=reference, reference_revision=revision)


def model_of(cfg: EvaluateConfig, path: str) -> ModelConfig:
    """How one of the models is loaded."""
    return replace(cfg.model, path=path)


def _require_rows(settings: Settings, path: str) -> None:
    """Refuse held-out rows that are gone: `data.eval`, or the file that they are a share of."""
    part = isinstance(settings.config.data.eval, int | float)
    key = "data.path" if part else "data.eval"
    for problem in settings.gone:
        if problem.key.partition("[")[0] == key:
            raise DataError(f"{path}: its held-out rows are gone; {problem.text}, or data=FILE")


def names(paths: Sequence[str]) -> list[str]:
    """What to call models: by the last part of each path, or as much as sets them apart.

    A job of a sweep is called by what it sets.
    """
    folders = [Path(path).parent if Path(path).name == "model" else Path(path) for path in paths]
    short = [
        settings_of_job(folder) or folder.name or path
        for folder, path in zip(folders, paths, strict=True)
    ]
    if len({*short}) == len(short):
        return short
    return [os.path.relpath(path) if os.path.exists(path) else path for path in paths]


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


def run(cfg: EvaluateConfig) -> None:
    """Print a table, and write what `output` asks for."""
    ctx = open_context(cfg.precision, cfg.seed, Path())
    if not cfg.output:
        _, failed = _report(cfg, ctx)
        _raise_reason(failed)
        return
    with writing(Path(cfg.output)) as write:
        report, failed = _report(cfg, ctx)
        write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        _raise_reason(failed)  # within: an older result is not replaced by one with columns missing
    logger.info(f"results: {cfg.output}")


def _raise_reason(failed: list[BaseException]) -> None:
    """Raise the interrupt that ended the measuring, else the first error."""
    if failed:
        interrupts = (e for e in failed if isinstance(e, KeyboardInterrupt | Interrupted))
        raise next(interrupts, failed[0])


def _report(cfg: EvaluateConfig, ctx: RunContext) -> tuple[dict[str, Any], list[BaseException]]:
    """Measure, print the table, and return what `output` holds, and the models' errors."""
    report: dict[str, Any] = {}
    failed: list[BaseException] = []
    if cfg.judge:
        results, report["answers"] = judge(cfg, ctx)
    else:
        results, failed = measure(cfg, ctx)
    if results:
        print(as_text(results), flush=True)
    return {"results": as_json(results), **report}, failed


def measure(cfg: EvaluateConfig, ctx: RunContext) -> tuple[list[Result], list[BaseException]]:
    """The metrics of every model, one model after the other; the rows of all are opened first.

    Returns:
        The results of the models that could be measured, and what went wrong with others. An
        interrupt ends the measuring, and is the last of these.

    Raises:
        DataError: the rows of a model cannot be read, or it has no metric for them.
    """
    given = not no_rows(cfg.data.path)
    opened = [(subject, _open(subject, given)) for subject in subjects(cfg)]
    found: list[Result] = []
    failed: list[BaseException] = []
    for subject, evaluation in opened:
        try:
            found += _measured(subject, evaluation, cfg.seed, ctx)
        except (Exception, KeyboardInterrupt) as error:
            clear_frames(error.__traceback__)  # they hold the model that the next one replaces
            failed.append(error)
            if len(opened) > 1:
                logger.info(f"{subject.name}: not measured, {first_line(error)}")
            if isinstance(error, KeyboardInterrupt | Interrupted):
                break
    return found, failed


def _open(subject: Subject, given: bool) -> Evaluation:
    logger.info(f"-- {subject.name}: rows")
    hub.begin({**hub.commits(), **subject.commits})
    return open_evaluation(subject, given=given)


def _measured(subject: Subject, evaluation: Evaluation, seed: int, ctx: RunContext) -> list[Result]:
    logger.info(f"-- {subject.name}")
    hub.begin({**hub.commits(), **subject.commits})
    return [Result(subject.name, one.metric, one.estimate(seed)) for one in evaluation(ctx)]
