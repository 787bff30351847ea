"""Numbers of held-out responses under a saved policy and its reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from rlhf_cli.context import RunContext, say
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.examples import Examples
from rlhf_cli.errors import ConfigError
from rlhf_cli.models.config import AdapterConfig, ComparedModelConfig, TrainedModelConfig
from rlhf_cli.models.load import LoadInputs, load_frozen
from rlhf_cli.models.policy import Policy
from rlhf_cli.stages.config import StageConfig
from rlhf_cli.stages.held_out import Columns, numbers_of_rows
from rlhf_cli.train.row_loss import RowValues
from rlhf_cli.train.sequence import row_logprobs, row_tokens


def compared(
    cfg: StageConfig, examples: Examples, tokenizer: Any, ctx: RunContext, ld_alpha: float = 1.0
) -> Columns:
    """Numbers of each row's response, [R] each.

    `logp` and `reference` are what the loss compares, nats; `plain` is the sum of the policy's
    log-probs, which differs from `logp` with `ld_alpha` below 1; `tokens` is the count.

    One model is held after the other, never both.

    Args:
        cfg: of the run that made the policy; `model.reference` is a path, or `none`.
        examples: held-out.
        tokenizer: of both models.
        ctx: device and compute type.
        ld_alpha: as in `row_logprobs`.

    Raises:
        ConfigError: it is not known what the policy started from.
    """
    model = require_reference(cfg)
    own = _log_probs(cfg, examples, tokenizer, ctx, ld_alpha)
    if model.reference == "none":
        return own | {"reference": np.zeros_like(own["logp"])}
    say(f"reference: {model.reference}")
    held = replace(cfg, model=TrainedModelConfig(path=model.reference), adapter=AdapterConfig())
    theirs = _log_probs(held, examples, tokenizer, ctx, ld_alpha)
    return own | {"reference": theirs["logp"]}


def require_reference(cfg: StageConfig) -> ComparedModelConfig:
    """The model of a run that says what it is compared with.

    Raises:
        ConfigError: it is not known what the policy started from.
    """
    model = cfg.model
    assert isinstance(model, ComparedModelConfig)
    if not model.reference:
        raise ConfigError(
            f"reference: the model that {model.path} started from is gone, so there is nothing to "
            "compare with. Try reference=FOLDER_OR_HUB_ID"
        )
    return model


def _log_probs(
    cfg: StageConfig, examples: Examples, tokenizer: Any, ctx: RunContext, ld_alpha: float
) -> Columns:
    policy = load_frozen(Policy, cfg, LoadInputs(tokenizer, ctx))

    def values(rows: TokenBatch) -> RowValues:
        out = policy(rows)
        return {
            "logp": row_logprobs(out, rows, ld_alpha),
            "plain": row_logprobs(out, rows),
            "tokens": row_tokens(rows),
        }

    return numbers_of_rows(values, policy, examples, cfg, ctx)
