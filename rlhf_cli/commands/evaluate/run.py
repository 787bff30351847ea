"""Measure models on held-out rows, side by side, or let a judge compare their answers."""

from __future__ import annotations

import json
from pathlib import Path
from traceback import clear_frames
from typing import Any

from rlhf_cli.commands.evaluate.choice import open_evaluation
from rlhf_cli.commands.evaluate.config import EvaluateConfig
from rlhf_cli.commands.evaluate.judged import judge
from rlhf_cli.commands.evaluate.subject import Subject, subjects
from rlhf_cli.commands.output import writing
from rlhf_cli.config.schema import no_rows
from rlhf_cli.context import RunContext, open_context, say
from rlhf_cli.errors import Interrupted, first_line
from rlhf_cli.evaluation.table import Result, as_json, as_text
from rlhf_cli.runs import hub
from rlhf_cli.stages.evaluation import Evaluation


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
    say(f"results: {cfg.output}")


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
                say(f"{subject.name}: not measured, {first_line(error)}")
            if isinstance(error, KeyboardInterrupt | Interrupted):
                break
    return found, failed


def _open(subject: Subject, given: bool) -> Evaluation:
    say(f"-- {subject.name}: rows")
    hub.begin({**hub.commits(), **subject.commits})
    return open_evaluation(subject, given=given)


def _measured(subject: Subject, evaluation: Evaluation, seed: int, ctx: RunContext) -> list[Result]:
    say(f"-- {subject.name}")
    hub.begin({**hub.commits(), **subject.commits})
    return [Result(subject.name, one.metric, one.estimate(seed)) for one in evaluation(ctx)]
