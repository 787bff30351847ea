"""Preflight of every command: checks of what its configuration names, with nothing loaded.

A preflight takes an instance of the config class, sets the defaults that depend on the model, and
returns a line for every problem with files, packages and models. It runs when a configuration is
checked, and again when what it names on the hub has been fetched. Contradictions among plain values
are found by the `problems` of the config classes. Torch is not imported.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from os.path import exists, expanduser, isdir
from typing import Any

from rlhf_cli.commands.chat.config import MAX_NEW_TOKENS, ChatConfig
from rlhf_cli.commands.config import GenerateConfig, MergeConfig, RowsConfig
from rlhf_cli.commands.evaluate.config import EvaluateConfig
from rlhf_cli.commands.score.config import ScoreConfig
from rlhf_cli.config.schema import no_rows
from rlhf_cli.data.config import DataConfig, list_paths
from rlhf_cli.preflight.hub import unfinished_runs
from rlhf_cli.preflight.models import (
    fit_to_model,
    load_problems,
    model_problems,
    positions,
    ppo_step_problems,
    reference_problems,
    teacher_problems,
    trains_adapter,
)
from rlhf_cli.preflight.rewards import reward_problems
from rlhf_cli.registry import EVALUATORS
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.server.config import ServerConfig
from rlhf_cli.runs.artifact import is_adapter, is_reward_model
from rlhf_cli.runs.model_checks import (
    check_not_encoder_decoder,
    check_not_reward_model,
    check_revision,
)
from rlhf_cli.runs.outputs import check_output
from rlhf_cli.runs.settings import read_settings
from rlhf_cli.stages.bco.config import BCOConfig
from rlhf_cli.stages.config import StageConfig
from rlhf_cli.stages.distill.config import DistillConfig
from rlhf_cli.stages.dpo.config import DPOConfig
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.train.config import LogConfig, TrainConfig


def _after_runs(check: Callable[[Any], list[str]]) -> Callable[[Any], list[str]]:
    """A preflight that first requires every run that is named as a model to be finished."""

    def checked(cfg: Any) -> list[str]:
        return unfinished_runs(cfg) or check(cfg)

    return checked


def _training(cfg: StageConfig) -> list[str]:
    fit_to_model(cfg)
    return [
        *model_problems(cfg.model),
        *data_problems(cfg.data),
        *train_problems(cfg.train),
        *log_problems(cfg.log),
        *load_problems(cfg),
        *_stage_problems(cfg),
    ]


@_after_runs
def training(cfg: StageConfig) -> list[str]:
    """Preflight of `rlhf pretrain`, `rlhf sft` and `rlhf reward`."""
    return _training(cfg)


@_after_runs
def dpo(cfg: DPOConfig) -> list[str]:
    """Preflight of `rlhf dpo`."""
    rewards = reward_problems(cfg.reward) if cfg.online else []
    return [*rewards, *_training(cfg), *reference_problems(cfg.model)]


@_after_runs
def bco(cfg: BCOConfig) -> list[str]:
    """Preflight of `rlhf bco`."""
    udm = cfg.udm
    path = "" if udm.embedding_model in ("none", "reference") else udm.embedding_model
    found = check_revision("udm.embedding_model", path, udm.embedding_model_revision)
    return found + _training(cfg) + reference_problems(cfg.model)


@_after_runs
def ppo(cfg: PPOConfig) -> list[str]:
    """Preflight of `rlhf ppo`."""
    return [*reward_problems(cfg.reward), *_training(cfg), *ppo_step_problems(cfg)]


@_after_runs
def distill(cfg: DistillConfig) -> list[str]:
    """Preflight of `rlhf distill`."""
    return [*_training(cfg), *teacher_problems(cfg)]


@_after_runs
def rows(cfg: StageConfig) -> list[str]:
    """Preflight of `rlhf data`, which needs the rows and the tokenizer of a stage only."""
    fit_to_model(cfg)
    model = cfg.model
    return [
        *check_revision("model.path", model.path, model.revision),
        *check_revision("model.tokenizer", model.tokenizer, model.tokenizer_revision),
        *data_problems(cfg.data),
        *_length_problems(cfg),
    ]


def rows_alone(cfg: RowsConfig) -> list[str]:
    """Preflight of rows that no stage reads."""
    return data_problems(cfg.data)


@_after_runs
def generate(cfg: GenerateConfig) -> list[str]:
    """Preflight of `rlhf generate`."""
    found = model_problems(cfg.model) + reward_problems(cfg.reward)
    found += check_not_reward_model("model.path", cfg.model.path, cfg.model.revision)
    found += _served_problems(cfg.rollout, [("model.path", cfg.model.path)], cfg.model.revision)
    return found + check_output(cfg) + _room_problems(positions(cfg.model), cfg.sampling)


def _served_problems(
    rollout: ServerConfig, named: Sequence[tuple[str, str]], revision: str
) -> list[str]:
    """The line for each adapter, which a server cannot be started with."""
    if not rollout.is_used:
        return []
    return [
        f"{key}: got {path}, an adapter, with a server; need whole weights. "
        f"Try rlhf merge model={path} output_dir={path.rstrip('/')}-merged"
        for key, path in named
        if is_adapter(path, revision)
    ]


def _room_problems(room: int | None, sampling: SamplingConfig) -> list[str]:
    """The line for a length limit that leaves no position for a prompt."""
    most = sampling.max_new_tokens
    if not room or most < room:
        return []
    return [
        f"sampling.max_new_tokens: got {most}, but the model has {room} positions for prompt "
        f"and response. Try sampling.max_new_tokens={max(1, room // 2)}"
    ]


@_after_runs
def chat(cfg: ChatConfig) -> list[str]:
    """Preflight of `rlhf chat`; lowers a `max_new_tokens` at its default to the model's room."""
    found = model_problems(cfg.model)
    for key, path in zip(_keys_of_models(cfg), cfg.models, strict=True):
        found += check_not_reward_model(key, path, cfg.model.revision)
        found += check_not_encoder_decoder(key, path, cfg.model.revision)
    models = [replace(cfg.model, path=path) for path in cfg.models]
    room = min(filter(None, map(positions, models)), default=None)
    if room and cfg.sampling.max_new_tokens == MAX_NEW_TOKENS:
        cfg.sampling.max_new_tokens = max(1, min(MAX_NEW_TOKENS, room // 2))
    return list(dict.fromkeys(found)) + check_output(cfg) + _room_problems(room, cfg.sampling)


def _keys_of_models(cfg: ChatConfig) -> list[str]:
    return ["model.path", *("beside" for _ in cfg.beside)]


@_after_runs
def merge(cfg: MergeConfig) -> list[str]:
    """Preflight of `rlhf merge`."""
    found, out = model_problems(cfg.model), cfg.output_dir
    if out and exists(out) and not (isdir(out) and not os.listdir(out)):
        found.append(
            f"output_dir: {out} is there already; need a new or empty folder. "
            f"Try output_dir={out}-merged"
        )
    return found


@_after_runs
def score(cfg: ScoreConfig) -> list[str]:
    """Preflight of `rlhf score`."""
    rows = DataConfig(path=cfg.data.path, revision=cfg.data.revision, eval="none")
    return [*reward_problems(cfg.reward), *data_problems(rows), *check_output(cfg)]


@_after_runs
def evaluate(cfg: EvaluateConfig) -> list[str]:
    """Preflight of `rlhf evaluate`."""
    found = model_problems(cfg.model) + check_output(cfg)
    found += check_revision("reference", cfg.reference, cfg.reference_revision)
    for key, path in cfg.named_models[1:]:
        found += check_not_encoder_decoder(key, path)
    if not cfg.judge:
        return found + _held_out_problems(cfg)
    found += _served_problems(cfg.rollout, cfg.named_models, cfg.model.revision)
    return found + [
        f"{key}: {path} is a reward model, which writes no answers"
        for key, path in cfg.named_models
        if is_reward_model(path, cfg.revision_of(path))
    ]


def data_problems(data: DataConfig) -> list[str]:
    """The line for a revision where no rows are on the hub."""
    given = [item for value in (data.path, data.eval) for item in list_paths(value)]
    on_hub = any(not exists(expanduser(path)) for path in given if "/" in path)
    if not data.revision or on_hub:
        return []
    return [
        f"data.revision: got {data.revision}, but neither data.path nor data.eval is a hub id, "
        "which alone has revisions. Leave data.revision out"
    ]


def train_problems(train: TrainConfig) -> list[str]:
    """The line for an optimizer whose package is not installed."""
    if train.optimizer == "adamw" or find_spec("bitsandbytes"):
        return []
    return [
        f"train.optimizer: got {train.optimizer}, which needs bitsandbytes. "
        "Try pip install 'rlhf-cli[quant]'"
    ]


def log_problems(log: LogConfig) -> list[str]:
    """The line for each tracker that is not installed."""
    return [
        f"log.trackers: got {name}, which is not installed. Try pip install {name}"
        for name in log.trackers
        if find_spec(name) is None
    ]


def _length_problems(cfg: StageConfig) -> list[str]:
    room = positions(cfg.model)
    if not room or cfg.data.max_length <= room:
        return []
    return [
        f"data.max_length: got {cfg.data.max_length}, but the model has {room} positions. "
        f"Try data.max_length={room}"
    ]


def _stage_problems(cfg: StageConfig) -> list[str]:
    found = _length_problems(cfg)
    if cfg.model.freeze and trains_adapter(cfg):
        found.append(
            f"model.freeze: got {', '.join(cfg.model.freeze)} beside an adapter, under which "
            "no other weight is trained. Leave it out, or train all weights: "
            "Try adapter=none, with adapter.start=merge where model.path brings an adapter"
        )
    if cfg.resume not in ("auto", "never") and not isdir(expanduser(cfg.resume)):
        found.append(
            f"resume: got {cfg.resume or 'nothing'}; need auto, never or the folder of a "
            "checkpoint. Try resume=auto"
        )
    return found


def _held_out_problems(cfg: EvaluateConfig) -> list[str]:
    if any(is_reward_model(path, cfg.revision_of(path)) for path in cfg.models):
        found = cfg.quant.not_of_scores()
        if found:
            return found
    if cfg.baseline or cfg.prompts:
        return []  # refused by the config class
    return [line for key, path in cfg.named_models for line in _rows_problems(cfg, key, path)]


def _rows_problems(cfg: EvaluateConfig, key: str, path: str) -> list[str]:
    settings = read_settings(path)
    if settings and settings.stage not in EVALUATORS:
        return [
            f"{key}: {path} is a run of {settings.stage}; evaluate measures runs of "
            f"{', '.join(EVALUATORS)}, and models that are no run"
        ]
    if not no_rows(cfg.data.path) or not path or (settings and settings.config.data.holds_out):
        return []
    what = "held out no rows" if settings else "is no run that held out rows"
    return [
        f"data.path: none given, and {path} {what}. Try data=FILE, or judge=FILE.py:"
        "FUNCTION with prompts=FILE"
    ]
