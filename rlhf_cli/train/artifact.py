"""The result of a run: `model/` in the ecosystem's own format, and `artifact.json` beside it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

from rlhf_cli.context import PRECISIONS, RunContext
from rlhf_cli.errors import CheckpointError, RlhfError, first_line
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.tokenizer import template_hash, tokenizer_hash
from rlhf_cli.runs.files import write_json_atomic
from rlhf_cli.train.checkpoint import flush_folder
from rlhf_cli.train.loop import RunResult


def save_model(
    policy: Policy,
    tokenizer: Any,
    ends: Sequence[int],
    trained_on: str,
    cfg: ModelConfig,
    ctx: RunContext,
    result: RunResult,
) -> None:
    """Write the trained model where `from_pretrained` and every converter can read it.

    Args:
        policy: its parameters are set to the result's, in the type of the result.
        tokenizer: saved beside the weights.
        ends: tokens that end a response; whatever generates with the result stops at them.
        trained_on: `chat` where the rows went through the template, else `text`.
        cfg: `dtype` and `path`.
        ctx: where to write.
        result: holds the trained masters.

    Raises:
        CheckpointError: the disk is full or read-only; the last checkpoint still stands.
    """
    dtype = PRECISIONS.get(cfg.dtype, ctx.compute)
    for name, param in policy.named_parameters():
        if name in result.weights:
            param.data = result.weights[name].to(dtype)
    model = policy.model
    model.config.dtype = dtype
    model.generation_config.eos_token_id = list(ends) if len(ends) > 1 else ends[0]
    final, partial = ctx.out / "model", ctx.out / "model.tmp"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        shutil.rmtree(final, ignore_errors=True)
        flush_folder(partial)
        partial.rename(final)
        write_json_atomic(ctx.out / "artifact.json", _describe(cfg, tokenizer, dtype, trained_on))
    except RlhfError:
        raise
    except Exception as error:  # safetensors and tokenizers have their own kinds for a full disk
        raise CheckpointError(
            f"{final}: the result could not be written ({first_line(error)}). Free disk space and "
            "give the same command again; the last checkpoint stands"
        ) from error


def _describe(cfg: ModelConfig, tokenizer: Any, dtype: Any, trained_on: str) -> dict[str, Any]:
    return {
        "kind": "causal_lm",
        "base": cfg.path,
        "adapters": [],
        "trained_on": trained_on,
        "dtype": str(dtype).removeprefix("torch."),
        "tokenizer_sha256": tokenizer_hash(tokenizer),
        "template_sha256": template_hash(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
