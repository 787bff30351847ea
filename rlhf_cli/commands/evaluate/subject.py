"""A model to measure, with the settings of the run that made it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from rlhf_cli.commands.evaluate.config import EvaluateConfig
from rlhf_cli.config.schema import no_rows
from rlhf_cli.errors import DataError
from rlhf_cli.models.config import AdapterConfig, ComparedModelConfig, ModelConfig
from rlhf_cli.preflight.models import fit_to_model
from rlhf_cli.registry import COMMANDS
from rlhf_cli.runs.artifact import is_reward_model
from rlhf_cli.runs.settings import Settings, read_settings
from rlhf_cli.stages.config import ResponseRowsConfig, StageConfig
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
    fit_to_model(config)  # as a stage does; `data` is a copy of the run's
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
