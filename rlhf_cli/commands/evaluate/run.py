"""`rlhf evaluate`: measure models on held-out rows, or compare their responses by a judge."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from traceback import clear_frames
from typing import Any

from rlhf_cli.commands.evaluate.config import EvaluateConfig
from rlhf_cli.commands.evaluate.judge import judge_models
from rlhf_cli.commands.evaluate.targets import Target, load_targets, to_response_rows_config
from rlhf_cli.config.schema import no_rows
from rlhf_cli.console import logger, print_result
from rlhf_cli.context import RunContext, create_context
from rlhf_cli.data.dataset import first_held_out_record_type
from rlhf_cli.data.prompts import PROMPT_RECORDS
from rlhf_cli.data.records.types import PromptRecord
from rlhf_cli.errors import Interrupted, first_line
from rlhf_cli.evaluation.table import Result, format_table, to_json
from rlhf_cli.registry import EVALUATORS
from rlhf_cli.runs import hub
from rlhf_cli.runs.outputs import open_output
from rlhf_cli.stages.config import StageConfig
from rlhf_cli.stages.dpo.config import DPOConfig
from rlhf_cli.stages.evaluation import (
    Evaluation,
    open_preference_evaluation,
)
from rlhf_cli.stages.likelihood import open_likelihood_evaluation
from rlhf_cli.stages.records import (
    LIKELIHOOD_RECORDS,
    PREFERENCE_RECORDS,
    UNPAIRED_RECORDS,
    records_of,
)

Open = Callable[[StageConfig, str], Evaluation]


def run(cfg: EvaluateConfig) -> None:
    """Print the table, and write the results to `output` if it is given."""
    ctx = create_context(cfg.precision, cfg.seed, Path())
    if not cfg.output:
        _, failed = _evaluate(cfg, ctx)
        _raise_first(failed)
        return
    with open_output(Path(cfg.output)) as write:
        report, failed = _evaluate(cfg, ctx)
        write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        _raise_first(failed)  # inside: a result that lacks models does not replace an older one
    logger.info(f"results: {cfg.output}")


def _raise_first(failed: list[BaseException]) -> None:
    """Raise the interrupt that ended the evaluation, else the first error."""
    if failed:
        interrupts = (e for e in failed if isinstance(e, KeyboardInterrupt | Interrupted))
        raise next(interrupts, failed[0])


def _evaluate(cfg: EvaluateConfig, ctx: RunContext) -> tuple[dict[str, Any], list[BaseException]]:
    """Evaluate and print the table; returns the content of `output`, and the models' errors."""
    report: dict[str, Any] = {}
    failed: list[BaseException] = []
    if cfg.judge:
        results, report["answers"] = judge_models(cfg, ctx)
    else:
        results, failed = measure(cfg, ctx)
    report = {"results": to_json(results), **report}
    if results:
        print_result(format_table(results), report)
    return report, failed


def measure(cfg: EvaluateConfig, ctx: RunContext) -> tuple[list[Result], list[BaseException]]:
    """Compute the metrics of one model after another; the rows of all models are opened first.

    Returns:
        The results, and the errors of models that could not be evaluated. An interrupt ends the
        evaluation and is the last of these.

    Raises:
        DataError: the rows of a model cannot be read, or the model has no metric for them.
    """
    given = not no_rows(cfg.data.path)
    opened = [(target, _open(target, given)) for target in load_targets(cfg)]
    found: list[Result] = []
    failed: list[BaseException] = []
    for target, evaluation in opened:
        try:
            found += _measured(target, evaluation, cfg.seed, ctx)
        except (Exception, KeyboardInterrupt) as error:
            clear_frames(error.__traceback__)  # frames keep the model in memory beside the next
            failed.append(error)
            if len(opened) > 1:
                logger.info(f"{target.name}: not measured, {first_line(error)}")
            if isinstance(error, KeyboardInterrupt | Interrupted):
                break
    return found, failed


def _open(target: Target, given: bool) -> Evaluation:
    logger.info(f"-- {target.name}: rows")
    hub.set_commits({**hub.commits(), **target.commits})
    return open_evaluation(target, given=given)


def _measured(target: Target, evaluation: Evaluation, seed: int, ctx: RunContext) -> list[Result]:
    logger.info(f"-- {target.name}")
    hub.set_commits({**hub.commits(), **target.commits})
    return [Result(target.name, one.metric, one.estimate(seed)) for one in evaluation(ctx)]


def open_evaluation(target: Target, *, given: bool) -> Evaluation:
    """Open the rows of a model and choose the metrics by model and kind of row.

    On rows that its own stage takes, a model has the metrics of that stage. Any language model has
    the likelihood of texts, responses and chats, and the log-probs of preference data.

    Args:
        target: the model.
        given: whether `data.path` names the rows; else they are the held-out rows of the run.

    Raises:
        DataError: the rows cannot be read, or the model has no metric for them.
    """
    cfg, stage = target.config, target.stage
    own = _stage_evaluation(stage)
    if not given or stage == "reward":
        return own(cfg, stage)
    records = _stage_records(cfg, stage)
    others = [record for record in _ANY if record not in records]
    first = first_held_out_record_type(
        cfg.data, stage, _GENERATED if cfg.generates else (*records, *others)
    )
    if first in records or first is None:
        return own(cfg, stage)
    is_judged = first in PREFERENCE_RECORDS
    open_rows = open_preference_evaluation if is_judged else open_likelihood_evaluation
    return open_rows(to_response_rows_config(cfg), stage)


_ANY = (*LIKELIHOOD_RECORDS, *PREFERENCE_RECORDS)
_GENERATED = (*_ANY, PromptRecord)
"""Records for a run that generated its responses: a row is measured by its response unless
`data.format=prompt`."""


def _stage_evaluation(stage: str) -> Open:
    module, _, function = EVALUATORS[stage].partition(":")
    found: Open = getattr(import_module(module), function)
    return found


def _stage_records(cfg: StageConfig, stage: str) -> tuple[type, ...]:
    """Record classes that a stage's own evaluation takes."""
    if isinstance(cfg, DPOConfig) and not cfg.online:
        return records_of(stage, cfg)
    own = {
        "bco": UNPAIRED_RECORDS,
        "distill": PROMPT_RECORDS,
        **dict.fromkeys(("ppo", "grpo", "dpo"), (PromptRecord,)),
    }
    return own.get(stage, LIKELIHOOD_RECORDS)
