"""What a run of bco made, measured on held-out rows."""

from __future__ import annotations

from functools import partial
from typing import Any

from rlhf_cli.context import RunContext
from rlhf_cli.data.dataset import LoadedExamples
from rlhf_cli.data.examples import Examples
from rlhf_cli.evaluation.measured import Measured
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.stages.bco.config import BCOConfig
from rlhf_cli.stages.compared import compared, require_reference
from rlhf_cli.stages.held_out import Evaluation, open_held_out
from rlhf_cli.stages.judged import judged_logprobs
from rlhf_cli.stages.labelled import RECORDS, labelled, separation


def open_evaluation(cfg: BCOConfig, stage: str) -> Evaluation:
    """Open the held-out rows; measures how well rewards tell desirable ones from others.

    Log-probs of the responses are measured too.

    Args:
        cfg: of the run; `model.path` is its result, `data.eval` the rows.
        stage: names the shipped rows, and stands in errors.

    Raises:
        ConfigError: it is not known what the policy started from.
        DataError: the rows cannot be read.
    """
    require_reference(cfg)
    tokenizer = load_tokenizer(cfg.model)
    loaded = open_held_out(cfg, stage, tokenizer, RECORDS)
    return partial(_measure, cfg, tokenizer, loaded, labelled(loaded, "held-out"))


def _measure(
    cfg: BCOConfig, tokenizer: Any, loaded: LoadedExamples, examples: Examples, ctx: RunContext
) -> list[Measured]:
    columns = compared(cfg, examples, tokenizer, ctx)
    reward = cfg.beta * (columns["logp"] - columns["reference"])
    found = separation(reward, examples.columns["score"])
    return [*found, *judged_logprobs(columns, loaded[0], loaded[1].kind)]
