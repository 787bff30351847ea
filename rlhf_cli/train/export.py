"""Saving the result of a run: `model/` in the Hugging Face format, and `artifact.json`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.context import PRECISIONS, RunContext
from rlhf_cli.distributed.process_group import raising_rank_failed
from rlhf_cli.distributed.ranks import SINGLE_PROCESS, Ranks
from rlhf_cli.errors import CheckpointError, RlhfError, first_line
from rlhf_cli.memory.phase import phase
from rlhf_cli.models.config import ComparedModelConfig, LoadConfig, ModelConfig
from rlhf_cli.models.quantize import has_quantized_weight
from rlhf_cli.models.resolve import weights_fingerprint
from rlhf_cli.models.reward_model import name_pad_token
from rlhf_cli.models.tokenizer import (
    TOKENIZATION_KEY,
    template_hash,
    tokenization_hash,
    tokenizer_hash,
)
from rlhf_cli.models.weight_files import Whole, save_weights
from rlhf_cli.models.wrapper import ModelWrapper
from rlhf_cli.runs import artifact, hub, lock, run_files
from rlhf_cli.runs.run_files import write_json_atomic
from rlhf_cli.train.checkpoint import flush_folder
from rlhf_cli.train.task import RunResult

MODEL_PREFIX = "model."
"""Prefix of the parameters of the transformers model within a policy."""


@phase("save")
def save_model(
    policy: ModelWrapper,
    tokenizer: Any,
    ends: Sequence[int],
    trained_on: str,
    cfg: LoadConfig,
    ctx: RunContext,
    result: RunResult,
    whole: Whole | None = None,
) -> None:
    """Save the trained model for `from_pretrained`, PEFT and converters, and describe it.

    The main process calls it; under sharding all do, and the main one writes.

    Args:
        policy: the model; its parameters are set to the result's, in the result's dtype.
        tokenizer: is saved beside the weights.
        ends: ids of tokens that end a response; saved as `eos_token_id` for generation.
        trained_on: `chat` where rows were formatted with the chat template, else `text`.
        cfg: the model it started from, and the dtype of the result.
        ctx: the run folder.
        result: holds the trained fp32 masters.
        whole: gathers a parameter of the policy by its name, as it is in the result; needed where
            no process has it as a whole.

    Raises:
        CheckpointError: the disk is full or read-only, or another process took the folder over;
            the last checkpoint still stands.
        RankFailed: another process failed.
    """
    dtype = PRECISIONS.get(cfg.model.dtype, ctx.compute)
    final, partial = ctx.out / run_files.MODEL, ctx.out / f"{run_files.MODEL}.tmp"
    ranks = ctx.ranks if whole is not None else SINGLE_PROCESS
    described = {"trained_on": trained_on, "dtype": str(dtype).removeprefix("torch.")}

    def commit() -> None:
        tokenizer.save_pretrained(partial)
        _replace_folder(final, partial)
        facts = described | _origin(policy, cfg) | _tokens(tokenizer)
        write_json_atomic(ctx.out / artifact.NAME, {"kind": policy.kind, **facts})

    ranks.run_on_main(lambda: _prepare(ctx.out, partial))
    if whole is None:
        _set_weights(policy, result, dtype)
    _set_token_ids(policy, tokenizer, ends)
    with _explaining(final):
        _write_weights(policy, partial, dtype, whole, ranks)
        ranks.run_on_main(commit)


def _prepare(out: Path, partial: Path) -> None:
    """Remove what an earlier attempt left; the run folder must still be this process's."""
    lock.require_owned(out)
    shutil.rmtree(partial, ignore_errors=True)


def _set_weights(policy: ModelWrapper, result: RunResult, dtype: torch.dtype) -> None:
    """Set the parameters to the trained masters."""
    for name, param in policy.named_parameters():
        if name in result.weights:
            param.data = result.weights[name].to(dtype)


def _set_token_ids(policy: ModelWrapper, tokenizer: Any, ends: Sequence[int]) -> None:
    """Write the ids that end or pad rows into the configs that are saved."""
    if policy.kind == "causal_lm":
        policy.model.generation_config.eos_token_id = list(ends) if len(ends) > 1 else ends[0]
    else:
        name_pad_token(policy.model, tokenizer)


def _replace_folder(final: Path, partial: Path) -> None:
    """Put a folder that is complete on the disk in the place of an earlier one."""
    shutil.rmtree(final, ignore_errors=True)
    flush_folder(partial)
    partial.rename(final)


@contextmanager
def _explaining(final: Path) -> Iterator[None]:
    """Name the folder that could not be written, and say what is left.

    Raises:
        CheckpointError: it could not be written.
    """
    try:
        yield
    except RlhfError:
        raise
    except Exception as error:  # safetensors and tokenizers have their own kinds for a full disk
        raise CheckpointError(
            f"{final}: the result could not be written ({first_line(error)}). Free disk space and "
            "give the same command again; the last checkpoint stands"
        ) from error


def _write_weights(
    policy: ModelWrapper, folder: Path, dtype: torch.dtype, whole: Whole | None, ranks: Ranks
) -> None:
    """Write the weights, or the adapters alone; where one process fails, all raise an error."""

    def save_adapters() -> None:
        assert policy.adapters is not None
        policy.adapters.save(folder)
        if policy.kind == "causal_lm":
            policy.model.generation_config.save_pretrained(folder)

    def gather(name: str) -> Tensor:
        assert whole is not None
        with raising_rank_failed() if ranks.world_size > 1 else nullcontext():
            return whole(f"{MODEL_PREFIX}{name}")

    if policy.adapters is not None:
        ranks.run_on_main(save_adapters)
    else:
        save_weights(policy.model, folder, dtype, None if whole is None else gather, ranks)


def _origin(policy: ModelWrapper, cfg: LoadConfig) -> dict[str, Any]:
    """Origin of the weights; for an adapter, everything needed to load its base again."""
    commits = {"commits": _commits(cfg.model)}
    if policy.adapters is None:
        return {"base": cfg.model.path, "adapters": [], **commits}
    source, quant = policy.adapters.source, cfg.quant
    own = quant.kind != "auto"
    return {
        **commits,
        "base": source.base,
        "base_commit": source.commit,
        "base_fingerprint": weights_fingerprint(Path(source.folder)),
        "adapters": policy.adapters.folders(),
        "quant": quant.kind if own else source.quant,
        "quant_double": quant.double if own else source.double,
        "quant_output_layer": has_quantized_weight(policy.output_layer),
    }


def _commits(model: ModelConfig) -> dict[str, str]:
    """Key -> `ID@COMMIT` of each hub model that the run started from or compared with."""
    named = {
        "model.path": (model.path, model.revision),
        "model.base": (model.base, model.base_revision),
        "model.tokenizer": (model.tokenizer, model.tokenizer_revision),
    }
    if isinstance(model, ComparedModelConfig):
        named["model.reference"] = (model.reference, model.reference_revision)
    found = {
        key: (path, hub.resolved_commit(path, revision)) for key, (path, revision) in named.items()
    }
    return {key: f"{path}@{commit}" for key, (path, commit) in found.items() if commit}


def _tokens(tokenizer: Any) -> dict[str, Any]:
    return {
        "tokenizer_sha256": tokenizer_hash(tokenizer),
        TOKENIZATION_KEY: tokenization_hash(tokenizer),
        "template_sha256": template_hash(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
