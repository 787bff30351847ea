"""Write an adapter run as one plain model, and show that it says the same."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.commands.config import MergeConfig
from rlhf_cli.context import PRECISIONS, open_context, say
from rlhf_cli.errors import ModelError, first_line
from rlhf_cli.models.resolve import ModelSource, resolve_model
from rlhf_cli.models.reward_model import name_pad_token
from rlhf_cli.models.tokenizer import TOKENIZATION_KEY, load_tokenizer, tokenization_hash
from rlhf_cli.runs import artifact
from rlhf_cli.runs.files import unwritable, write_json_atomic

PROMPTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Question: what is seven times eight?\n\nAnswer: fifty-six.",
    "Once upon a time there was a miller who had three sons, a mill, a donkey and a cat.",
)

SHARD = "5GB"
"""Most of a file of weights."""

DTYPES = {**PRECISIONS, "fp16": torch.float16}

MOST_DRIFT = 1e-3
"""Mean difference of log-probs (nats) or scores in fp32; what lies above is not rounding."""

LEAST_DRIFT = 1e-4
"""Mean difference that rounding in fp32 may reach in a deep model, however small the effect."""

MOST_COST = 0.05
"""Most error of the merged model, as a share of the adapter's effect, without a warning."""


@dataclass(frozen=True)
class Check:
    """What a merged model has to say.

    Attributes:
        prompts: [1, T] each, token ids.
        expected: log-probs [tokens, V] in nats, or scores [prompts, 1], of base and adapter.
        effect: mean absolute difference between these and those of the bare base.
    """

    prompts: list[Tensor]
    expected: Tensor
    effect: float

    @property
    def limit(self) -> float:
        """Most drift of a right merge in fp32; an adapter of small effect is not within it."""
        return min(MOST_DRIFT, max(MOST_COST * self.effect, LEAST_DRIFT))

    def drift(self, merged: Any, name: str) -> float:
        """Mean absolute difference between a merged model and base with adapter; is said."""
        got = _said(merged, self.prompts)
        drift = float((got - self.expected).abs().mean())
        say(
            f"merged ({name}) against unmerged (fp32): {_difference(got, self.expected)}, "
            f"{drift / self.effect:.2%} of what the adapter changes"
        )
        return drift


def run(cfg: MergeConfig) -> None:
    """Merge, compare, save.

    Raises:
        ModelError: the model is no adapter, the adapter changes nothing, or the merged model says
            something else.
    """
    source = resolve_model(cfg.model)
    if not source.adapters:
        raise ModelError(
            f"model.path: {cfg.model.path} is no adapter run, so there is nothing to merge; "
            "it is a whole model already"
        )
    open_context("fp32", 0, Path(cfg.output_dir))
    tokenizer = load_tokenizer(cfg.model)
    merged, dtype = _merge_checked(cfg, source, tokenizer)
    target = _save(cfg, merged, dtype, tokenizer)
    say(f"merged: {source.describe()} -> {target} ({dtype})")
    if cfg.push_to_hub:
        _push(target, cfg.push_to_hub)


def _merge_checked(cfg: MergeConfig, source: ModelSource, tokenizer: Any) -> tuple[Any, str]:
    """The merged model in its type, and that type, after a comparison with what it was made of."""
    from rlhf_cli.models.local_base import load_with_adapters, merge_adapters

    unmerged = load_with_adapters(cfg.model, source, tokenizer)
    check = _check(cfg, source, tokenizer, unmerged)
    merged = merge_adapters(unmerged)
    drift = check.drift(merged, "fp32")
    if not drift <= check.limit:
        raise ModelError(
            f"model.path: merged, {cfg.model.path} says something else: it differs by "
            f"{drift:.1e} in the mean, more than {check.limit:.1g}, in fp32"
        )
    dtype = _chosen_dtype(cfg, source)
    cost = _rounding_cost(merged, dtype, drift, check)
    if cost <= MOST_COST:
        return merged.to(DTYPES[dtype]), dtype
    say(f"warning: dtype: weights in {dtype} lose {cost:.0%} of what the adapter changes")
    if cfg.dtype != "auto" or dtype == "fp32":
        _require_finite(cost, dtype)
        return merged.to(DTYPES[dtype]), dtype
    say(f"dtype: fp32 is written instead of {dtype}, the type of the base. dtype={dtype} forces it")
    # rounded in place, and let go before the exact weights are made anew: no second copy is held
    del merged, unmerged
    return merge_adapters(load_with_adapters(cfg.model, source, tokenizer)), "fp32"


def _require_finite(cost: float, dtype: str) -> None:
    if not math.isfinite(cost):
        raise ModelError(
            f"dtype: got {dtype}, in which this model's numbers overflow. Try dtype=bf16"
        )


def _check(cfg: MergeConfig, source: ModelSource, tokenizer: Any, unmerged: Any) -> Check:
    """What the merged model has to say, and how far that is from the base."""
    prompts = [tokenizer(text, return_tensors="pt")["input_ids"] for text in PROMPTS]
    expected = _said(unmerged, prompts)
    with unmerged.disable_adapter():
        base = _said(unmerged, prompts)
    if torch.equal(base, expected):
        raise ModelError(
            f"model.path: the adapter of {cfg.model.path} changes nothing (its weights are zero); "
            "there is nothing to merge. Was it trained?"
        )
    say(f"adapter against base: {_difference(expected, base)}")
    if source.quant != "none":
        from rlhf_cli.models.local_base import load_with_adapters

        quantized = load_with_adapters(cfg.model, source, tokenizer, quantized=True)
        trained = _said(quantized, prompts)
        say(
            f"whole base against the {source.quant} base it was trained on: "
            f"{_difference(expected, trained)}"
        )
    return Check(prompts, expected, float((expected - base).abs().mean()))


def _chosen_dtype(cfg: MergeConfig, source: ModelSource) -> str:
    """What `dtype` says, or the base's own type where it is one of ours."""
    from rlhf_cli.models.local_base import base_dtype

    if cfg.dtype != "auto":
        return cfg.dtype
    own = base_dtype(cfg.model, source)
    return next((name for name, dtype in DTYPES.items() if dtype == own), "fp32")


def _rounding_cost(merged: Any, dtype: str, drift: float, check: Check) -> float:
    """Round a merged model in place; its error as a share of what the adapter changes."""
    from rlhf_cli.models.local_base import round_weights

    if dtype != "fp32":
        round_weights(merged, DTYPES[dtype])
        drift = check.drift(merged, dtype)
    return drift / check.effect


def _said(model: Any, prompts: list[Tensor]) -> Tensor:
    """What the model says of the prompts: log-probs [tokens, V] in nats, or scores [prompts, 1]."""
    with torch.no_grad():
        outputs = [model(input_ids=prompt, use_cache=False).logits for prompt in prompts]
    if outputs[0].ndim == 2:
        return torch.cat(outputs).float()
    return torch.cat([logits[0] for logits in outputs]).float().log_softmax(-1)


def _difference(got: Tensor, expected: Tensor) -> str:
    off = (got - expected).abs()
    what = "scores" if got.shape[1] == 1 else "log-probs"
    return f"{what} differ by {off.mean():.1e} in the mean, {off.max():.1e} at most"


def _save(cfg: MergeConfig, model: Any, dtype: str, tokenizer: Any) -> Path:
    """All of it under its name, or nothing."""
    target = Path(cfg.output_dir).absolute()
    partial = target.with_name(f".{target.name}.tmp")
    model.config.dtype = DTYPES[dtype]
    if not model.can_generate():
        name_pad_token(model, tokenizer)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        model.save_pretrained(partial, max_shard_size=SHARD)
        tokenizer.save_pretrained(partial)
        folder = artifact.local_folder(cfg.model.path, cfg.model.revision)
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
        partial.rename(target)
    except OSError as error:
        raise unwritable(target, error) from error
    return target


def _push(folder: Path, hub_id: str) -> None:
    """Upload all of a folder.

    Raises:
        ModelError: the hub does not take it; the folder stays.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(hub_id, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=hub_id, folder_path=folder)
    except Exception as error:  # the connection, the token, the name: all have their own kinds
        raise ModelError(
            f"push_to_hub: {hub_id} could not be uploaded ({first_line(error)}). The merged model "
            f"is in {folder}. Log in with hf auth login, then try hf upload {hub_id} {folder}"
        ) from error
    say(f"uploaded: https://huggingface.co/{hub_id}")
