"""Models to evaluate, each with the settings of the run that made it."""

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
from rlhf_cli.stages.distill.config import ADAPTER_OFF, DistillConfig
from rlhf_cli.sweep.jobs import job_overrides


@dataclass(frozen=True)
class Target:
    """A model to evaluate.

    Attributes:
        name: head of its column in the table.
        stage: of the run that made it; `sft` or `reward` for other models.
        config: of that run, with its result as the model and the rows to evaluate as `data.eval`.
        commits: `ID@REVISION` -> commit of the hub repositories that the run used.
    """

    name: str
    stage: str
    config: StageConfig
    commits: Mapping[str, str]


def load_targets(cfg: EvaluateConfig) -> list[Target]:
    """Read the settings of all models of an evaluation, in the order given.

    Raises:
        DataError: the held-out rows of a run no longer exist.
    """
    named = zip(cfg.models, short_names(cfg.models), strict=True)
    return [_load_target(cfg, path, name) for path, name in named]


def _load_target(cfg: EvaluateConfig, path: str, name: str) -> Target:
    settings = read_settings(path)
    if settings and no_rows(cfg.data.path):
        _require_rows(settings, path)
    stage = settings.stage if settings else _default_stage(path, cfg.model.revision)
    own = settings.config if settings else COMMANDS[stage].config()
    config = replace(
        own,
        model=_model(cfg, own.model, path),
        adapter=AdapterConfig(),  # an adapter at the path is used as it is
        quant=cfg.quant,
        data=cfg.data.applied_to(own.data),
        train=replace(own.train, micro_batch_tokens=cfg.micro_batch_tokens),
        device_memory=cfg.device_memory,
    )
    if isinstance(own, DistillConfig) and isinstance(config, DistillConfig):
        teacher, revision = _teacher(cfg, own)
        config = replace(config, teacher=teacher, teacher_revision=revision)
    if cfg.template != "auto":
        config = config if hasattr(config, "template") else to_response_rows_config(config)
        config = replace(config, template=cfg.template)
    fit_to_model(config)  # as a stage does; `data` is a copy of the run's
    return Target(name, stage, config, settings.commits if settings else {})


def _teacher(cfg: EvaluateConfig, own: DistillConfig) -> tuple[str, str]:
    """Teacher of a run and its revision; `reference` names another."""
    if cfg.reference:
        return cfg.reference, cfg.reference_revision
    if own.teacher == ADAPTER_OFF:  # the base has a path of its own here
        return own.model.path, own.model.revision
    return own.teacher, own.teacher_revision


def to_response_rows_config(cfg: StageConfig) -> StageConfig:
    """Convert to a configuration with `template`, which not every stage has."""
    if isinstance(cfg, ResponseRowsConfig):
        return cfg
    shared = {f.name: getattr(cfg, f.name) for f in fields(StageConfig)}
    return ResponseRowsConfig(**shared, template=getattr(cfg, "template", "auto"))


def _default_stage(path: str, revision: str) -> str:
    """Stage by which a model that no run of ours made is evaluated."""
    return "reward" if is_reward_model(path, revision) else "sft"


def _model(cfg: EvaluateConfig, own: ModelConfig, path: str) -> ModelConfig:
    """Model config of a target, with the reference that its run was trained against."""
    given = vars(target_model(cfg, path))
    if not isinstance(own, ComparedModelConfig):
        return replace(own, **given)
    if own.reference == "none":
        reference, revision = "none", ""
    elif cfg.reference:
        reference, revision = cfg.reference, cfg.reference_revision
    elif own.reference in own.reference_choices:
        reference, revision = own.path, own.revision
    else:
        reference, revision = own.reference, own.reference_revision
    return replace(own, **given, reference=reference, reference_revision=revision)


def target_model(cfg: EvaluateConfig, path: str) -> ModelConfig:
    """Model config of the evaluation for one of its models."""
    return replace(cfg.model, path=path)


def _require_rows(settings: Settings, path: str) -> None:
    """Refuse a run whose held-out rows are gone: `data.eval`, or `data.path` if it is a share."""
    share = isinstance(settings.config.data.eval, int | float)
    key = "data.path" if share else "data.eval"
    for problem in settings.gone:
        if problem.key.partition("[")[0] == key:
            raise DataError(f"{path}: its held-out rows are gone; {problem.text}, or data=FILE")


def short_names(paths: Sequence[str]) -> list[str]:
    """Name models by the last part of their paths, or by the full paths if those are not unique.

    A job of a sweep is named by its overrides.
    """
    folders = [Path(path).parent if Path(path).name == "model" else Path(path) for path in paths]
    short = [
        job_overrides(folder) or folder.name or path
        for folder, path in zip(folders, paths, strict=True)
    ]
    if len({*short}) == len(short):
        return short
    return [os.path.relpath(path) if os.path.exists(path) else path for path in paths]
