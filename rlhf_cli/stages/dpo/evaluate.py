"""What a run of dpo made, measured on held-out rows."""

from __future__ import annotations

from dataclasses import replace

from rlhf_cli.context import RunContext
from rlhf_cli.evaluation.measured import Measured
from rlhf_cli.evaluation.ranking import agreement
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.stages.compared import compared
from rlhf_cli.stages.dpo.config import DPOConfig
from rlhf_cli.stages.dpo.run import records_of
from rlhf_cli.stages.held_out import open_held_out
from rlhf_cli.stages.labelled import labelled, separation


def evaluate(cfg: DPOConfig, stage: str, ctx: RunContext) -> list[Measured]:
    """Rewards of held-out pairs, against the model that the run started from; of labels for kto.

    Args:
        cfg: of the run; `model.path` is its result, `data.eval` the rows.
        stage: names the shipped rows, and stands in errors.
        ctx: device and compute type.
    """
    tokenizer = load_tokenizer(cfg.model)
    loaded = open_held_out(cfg, stage, tokenizer, records_of(cfg))
    examples = labelled(loaded) if cfg.unpaired else loaded[0]
    columns = compared(cfg, examples, tokenizer, ctx, cfg.ld_alpha)
    reward = cfg.beta * (columns["logp"] - columns["reference"])
    if cfg.unpaired:
        return separation(reward, examples.columns["score"])
    chosen, rejected = reward[0::2], reward[1::2]
    return [
        *(_of_rewards(one) for one in agreement(chosen, rejected)),
        Measured("rewards/margins", (chosen - rejected,)),
        Measured("rewards/chosen", (chosen,)),
        Measured("rewards/rejected", (rejected,)),
        Measured("logps/chosen", (columns["logp"][0::2],)),
        Measured("logps/rejected", (columns["logp"][1::2],)),
    ]


def _of_rewards(one: Measured) -> Measured:
    """Under the name that training has for it."""
    return replace(one, metric="rewards/" + one.metric.replace("accuracy", "accuracies"))
