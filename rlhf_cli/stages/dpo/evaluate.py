"""What a run of dpo made, measured on held-out rows."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from rlhf_cli.context import RunContext
from rlhf_cli.data.dataset import LoadedExamples
from rlhf_cli.data.examples import Examples
from rlhf_cli.evaluation.measured import Measured
from rlhf_cli.evaluation.ranking import agreement
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.stages.compared import compared, require_reference
from rlhf_cli.stages.dpo.config import DPOConfig
from rlhf_cli.stages.dpo.run import records_of
from rlhf_cli.stages.held_out import Evaluation, open_held_out
from rlhf_cli.stages.judged import judged_logprobs
from rlhf_cli.stages.labelled import labelled, separation


def open_evaluation(cfg: DPOConfig, stage: str) -> Evaluation:
    """Open the held-out rows: pairs, or for kto rows with labels.

    Measures rewards against the model that the run started from, and log-probs of the responses.

    Args:
        cfg: of the run; `model.path` is its result, `data.eval` the rows.
        stage: names the shipped rows, and stands in errors.

    Raises:
        ConfigError: it is not known what the policy started from.
        DataError: the rows cannot be read, or are of one class only.
    """
    require_reference(cfg)
    tokenizer = load_tokenizer(cfg.model)
    loaded = open_held_out(cfg, stage, tokenizer, records_of(cfg))
    examples = labelled(loaded, "held-out") if cfg.unpaired else loaded[0]
    return partial(_measure, cfg, tokenizer, loaded, examples)


def _measure(
    cfg: DPOConfig, tokenizer: Any, loaded: LoadedExamples, examples: Examples, ctx: RunContext
) -> list[Measured]:
    columns = compared(cfg, examples, tokenizer, ctx, cfg.ld_alpha)
    reward = cfg.beta * (columns["logp"] - columns["reference"])
    said = judged_logprobs({**columns, "logp": columns["plain"]}, loaded[0], loaded[1].kind)
    if cfg.unpaired:
        return [*separation(reward, examples.columns["score"]), *said]
    chosen, rejected = reward[0::2], reward[1::2]
    return [
        *(_of_rewards(one) for one in agreement(chosen, rejected)),
        Measured("rewards/margins", (chosen - rejected,)),
        Measured("rewards/chosen", (chosen,)),
        Measured("rewards/rejected", (rejected,)),
        *said,
    ]


def _of_rewards(one: Measured) -> Measured:
    """Under the name that training has for it."""
    return replace(one, metric="rewards/" + one.metric.replace("accuracy", "accuracies"))
