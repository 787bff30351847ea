"""Measure models on held-out rows, side by side, or let a judge compare their answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from rlhf_cli.context import RunContext, open_context, say
from rlhf_cli.evaluation.measured import Measured
from rlhf_cli.evaluation.table import Result, as_json, as_text
from rlhf_cli.runs import hub
from rlhf_cli.stages.registry import EVALUATORS
from rlhf_cli.verbs.evaluate.config import EvaluateConfig
from rlhf_cli.verbs.evaluate.judged import judge
from rlhf_cli.verbs.evaluate.subject import subjects
from rlhf_cli.verbs.output import writing


def run(cfg: EvaluateConfig) -> None:
    """Print a table, and write what `output` asks for."""
    ctx = open_context(cfg.precision, cfg.seed, Path())
    if not cfg.output:
        _report(cfg, ctx)
        return
    with writing(Path(cfg.output)) as write:
        write(json.dumps(_report(cfg, ctx), indent=2, ensure_ascii=False) + "\n")
    say(f"results: {cfg.output}")


def _report(cfg: EvaluateConfig, ctx: RunContext) -> dict[str, Any]:
    """Measure, print the table, and return what `output` holds."""
    report: dict[str, Any] = {}
    if cfg.judge:
        results, report["answers"] = judge(cfg, ctx)
    else:
        results = measure(cfg, ctx)
    print(as_text(results), flush=True)
    return {"results": as_json(results), **report}


def measure(cfg: EvaluateConfig, ctx: RunContext) -> list[Result]:
    """The metrics of every model, one model after the other."""
    found = []
    for subject in subjects(cfg):
        say(f"-- {subject.name}")
        hub.begin({**hub.commits(), **subject.commits})
        for measured in _evaluator(subject.stage)(subject.config, subject.stage, ctx):
            found.append(Result(subject.name, measured.metric, measured.estimate(cfg.seed)))
    return found


def _evaluator(stage: str) -> Callable[..., list[Measured]]:
    module, _, function = EVALUATORS[stage].partition(":")
    evaluator: Callable[..., list[Measured]] = getattr(import_module(module), function)
    return evaluator
