"""`rlhf merge`: write an adapter run as one plain model, and compare their outputs."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.commands.config import MergeConfig
from rlhf_cli.console import logger, print_result
from rlhf_cli.context import PRECISIONS, create_context
from rlhf_cli.errors import ModelError, first_line
from rlhf_cli.models.resolve import ModelSource, resolve_model
from rlhf_cli.models.reward_model import name_pad_token
from rlhf_cli.models.tokenizer import TOKENIZATION_KEY, load_tokenizer, tokenization_hash
from rlhf_cli.runs import artifact
from rlhf_cli.runs.run_files import write_error, write_json_atomic

PROMPTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Question: what is seven times eight?\n\nAnswer: fifty-six.",
    "Once upon a time there was a miller who had three sons, a mill, a donkey and a cat.",
)

DTYPES = {**PRECISIONS, "fp16": torch.float16}

MAX_DRIFT = 1e-3
"""Largest mean difference of log-probs (nats) or scores in fp32 that rounding explains."""

ROUNDING_DRIFT = 1e-4
"""Mean difference that fp32 rounding can reach in a deep model, however small the effect."""

MAX_COST = 0.05
"""Error of the merged model that causes a warning, as a share of the adapter's effect."""


@dataclass(frozen=True)
class Check:
    """Expected outputs of the merged model.

    Attributes:
        prompts: [1, T] each, token ids.
        expected: log-probs [tokens, V] in nats, or scores [prompts, 1], of base with adapter.
        effect: mean absolute difference between `expected` and the outputs of the base alone.
    """

    prompts: list[Tensor]
    expected: Tensor
    effect: float

    @property
    def limit(self) -> float:
        """Largest drift of a correct merge in fp32; below the effect of the adapter."""
        return min(MAX_DRIFT, max(MAX_COST * self.effect, ROUNDING_DRIFT))

    def drift(self, merged: Any, name: str) -> float:
        """Mean absolute difference between the merged model and base with adapter; logged."""
        got = _outputs(merged, self.prompts)
        drift = float((got - self.expected).abs().mean())
        logger.info(
            f"merged ({name}) against unmerged (fp32): {_difference(got, self.expected)}, "
            f"{drift / self.effect:.2%} of what the adapter changes"
        )
        return drift


def run(cfg: MergeConfig) -> None:
    """Merge, compare, save.

    Raises:
        ModelError: the model is no adapter, the adapter changes nothing, or the merged model has
            other outputs.
    """
    source = resolve_model(cfg.model)
    if not source.adapters:
        raise ModelError(
            f"model.path: {cfg.model.path} is no adapter run, so there is nothing to merge; "
            "it is a whole model already"
        )
    create_context("fp32", 0, Path(cfg.output_dir))
    tokenizer = load_tokenizer(cfg.model)
    merged, dtype = _merge_checked(cfg, source, tokenizer)
    target = _save(cfg, merged, dtype, tokenizer)
    logger.info(f"merged: {source.describe()} -> {target} ({dtype})")
    print_result("", {"output_dir": str(target), "dtype": dtype})
    if cfg.push_to_hub:
        _push(target, cfg.push_to_hub)


def _merge_checked(cfg: MergeConfig, source: ModelSource, tokenizer: Any) -> tuple[Any, str]:
    """Merge, and compare with base and adapter; returns the model in fp32, and its dtype."""
    from rlhf_cli.models.local_base import load_with_adapters, merge_adapters

    unmerged = load_with_adapters(cfg.model, source, tokenizer)
    check = _check(cfg, source, tokenizer, unmerged)
    merged = merge_adapters(unmerged)
    drift = check.drift(merged, "fp32")
    if not drift <= check.limit:
        raise ModelError(
            f"model.path: merged, {cfg.model.path} has other outputs: they differ by "
            f"{drift:.1e} in the mean, more than {check.limit:.1g}, in fp32"
        )
    dtype = _chosen_dtype(cfg, source)
    cost = _rounding_cost(merged, dtype, drift, check)
    if cost <= MAX_COST:
        return merged, dtype
    logger.info(f"warning: dtype: weights in {dtype} lose {cost:.0%} of what the adapter changes")
    if cfg.dtype != "auto" or dtype == "fp32":
        _require_finite(cost, dtype)
        return merged, dtype
    logger.info(
        f"dtype: fp32 is written instead of {dtype}, the type of the base. dtype={dtype} forces it"
    )
    return merged, "fp32"


def _require_finite(cost: float, dtype: str) -> None:
    if not math.isfinite(cost):
        raise ModelError(
            f"dtype: got {dtype}, in which this model's numbers overflow. Try dtype=bf16"
        )


def _check(cfg: MergeConfig, source: ModelSource, tokenizer: Any, unmerged: Any) -> Check:
    """Compute the expected outputs, and how far they are from those of the base."""
    prompts = [tokenizer(text, return_tensors="pt")["input_ids"] for text in PROMPTS]
    expected = _outputs(unmerged, prompts)
    with unmerged.disable_adapter():
        base = _outputs(unmerged, prompts)
    if torch.equal(base, expected):
        raise ModelError(
            f"model.path: the adapter of {cfg.model.path} changes nothing (its weights are zero); "
            "there is nothing to merge. Was it trained?"
        )
    logger.info(f"adapter against base: {_difference(expected, base)}")
    if source.quant != "none":
        from rlhf_cli.models.local_base import load_with_adapters

        quantized = load_with_adapters(cfg.model, source, tokenizer, quantized=True)
        trained = _outputs(quantized, prompts)
        logger.info(
            f"unquantized base against the {source.quant} base it was trained on: "
            f"{_difference(expected, trained)}"
        )
    return Check(prompts, expected, float((expected - base).abs().mean()))


def _chosen_dtype(cfg: MergeConfig, source: ModelSource) -> str:
    """The dtype of the config, or that of the base if it is one of ours; else fp32."""
    from rlhf_cli.models.local_base import base_dtype

    if cfg.dtype != "auto":
        return cfg.dtype
    own = base_dtype(cfg.model, source)
    return next((name for name, dtype in DTYPES.items() if dtype == own), "fp32")


def _rounding_cost(merged: Any, dtype: str, drift: float, check: Check) -> float:
    """Round the merged model; returns its error as a share of the adapter's effect."""
    from rlhf_cli.models.local_base import rounded

    if dtype != "fp32":
        with rounded(merged, DTYPES[dtype]):
            drift = check.drift(merged, dtype)
    return drift / check.effect


def _outputs(model: Any, prompts: list[Tensor]) -> Tensor:
    """Compute log-probs [tokens, V] in nats, or scores [prompts, 1], of the prompts."""
    from rlhf_cli.models.streamed_forward import streamed

    with torch.no_grad(), streamed(model):
        outputs = [model(input_ids=prompt, use_cache=False).logits for prompt in prompts]
    if outputs[0].ndim == 2:
        return torch.cat(outputs).float()
    return torch.cat([logits[0] for logits in outputs]).float().log_softmax(-1)


def _difference(got: Tensor, expected: Tensor) -> str:
    off = (got - expected).abs()
    what = "scores" if got.shape[1] == 1 else "log-probs"
    return f"{what} differ by {off.mean():.1e} in the mean, {off.max():.1e} at most"


def _save(cfg: MergeConfig, model: Any, dtype: str, tokenizer: Any) -> Path:
    """Save model and tokenizer atomically: complete under the final name, or not at all."""
    from rlhf_cli.models.weight_files import save_weights
    from rlhf_cli.train.checkpoint import flush_folder

    target = Path(cfg.output_dir).absolute()
    partial = target.with_name(f".{target.name}.tmp")
    if not model.can_generate():
        name_pad_token(model, tokenizer)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        # buffers are written in the type of the weights too
        save_weights(model.to(DTYPES[dtype]), partial, DTYPES[dtype])
        tokenizer.save_pretrained(partial)
        folder = artifact.find_model_folder(cfg.model.path, cfg.model.revision)
        facts = artifact.read(folder) if folder else {}
        kept = {name: facts[name] for name in ("kind", "trained_on") if name in facts}
        write_json_atomic(
            partial / artifact.NAME,
            {
                **kept,
                "base": cfg.model.path,
                "adapters": [],
                "dtype": dtype,
                TOKENIZATION_KEY: tokenization_hash(tokenizer),
            },
        )
        flush_folder(partial)
        partial.rename(target)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)  # an interrupt comes in the middle of a file
        if isinstance(error, OSError):
            raise write_error(target, error) from error
        raise
    return target


def _push(folder: Path, hub_id: str) -> None:
    """Upload a folder to the hub.

    Raises:
        ModelError: the hub does not accept it; the folder remains.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(hub_id, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=hub_id, folder_path=folder)
    except Exception as error:  # connection, token, name: each has its own error class
        raise ModelError(
            f"push_to_hub: {hub_id} could not be uploaded ({first_line(error)}). The merged model "
            f"is in {folder}. Log in with hf auth login, then try hf upload {hub_id} {folder}"
        ) from error
    logger.info(f"uploaded: https://huggingface.co/{hub_id}")
