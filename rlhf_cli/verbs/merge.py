"""Write an adapter run as one plain model, and show that it says the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.context import PRECISIONS, open_context, say
from rlhf_cli.errors import ModelError, first_line
from rlhf_cli.models.base import SHAPES, load_base, scorer_fit
from rlhf_cli.models.config import AdapterConfig
from rlhf_cli.models.quantize import quantization, to_eval
from rlhf_cli.models.reward_model import name_pad_token
from rlhf_cli.models.source import Source, find_source
from rlhf_cli.models.tokenization import RECORD, tokenization_hash
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.runs import artifact
from rlhf_cli.runs.files import unwritable, write_json_atomic
from rlhf_cli.verbs.config import MergeConfig

PROMPTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Question: what is seven times eight?\n\nAnswer: fifty-six.",
    "Once upon a time there was a miller who had three sons, a mill, a donkey and a cat.",
)

SHARD = "5GB"
"""Most of a file of weights."""

MOST_DRIFT = {"fp32": 1e-3, "bf16": 0.1}
"""Mean difference of log-probs (nats) or scores; what lies above is not rounding."""


def run(cfg: MergeConfig) -> None:
    """Merge, compare, save.

    Raises:
        ModelError: the model is no adapter, the adapter changes nothing, or the merged model says
            something else.
    """
    source = find_source(cfg.model)
    if not source.adapters:
        raise ModelError(
            f"model.path: {cfg.model.path} is no adapter run, so there is nothing to merge; "
            "it is a whole model already"
        )
    open_context("fp32", 0, Path(cfg.output_dir))
    tokenizer = load_tokenizer(cfg.model)
    merged = _merge_checked(cfg, source, tokenizer)
    target = _save(cfg, merged, tokenizer)
    say(f"merged: {source.describe()} -> {target} ({cfg.dtype})")
    if cfg.push_to_hub:
        _push(target, cfg.push_to_hub)


def _merge_checked(cfg: MergeConfig, source: Source, tokenizer: Any) -> Any:
    """The merged model in its type, after a comparison with what it was made of."""
    from rlhf_cli.models.merge import load_unmerged, merge

    prompts = [tokenizer(text, return_tensors="pt")["input_ids"] for text in PROMPTS]
    unmerged = load_unmerged(cfg.model, source, tokenizer)
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
        trained = _on_packed_base(cfg, source, tokenizer, prompts)
        say(
            f"whole base against the {source.quant} base it was trained on: "
            f"{_difference(expected, trained)}"
        )
    dtype = PRECISIONS[cfg.dtype]
    # the weights are rounded and the arithmetic is not: in bf16 that of a deep model is as far off
    # as a wrong merge
    merged = merge(unmerged).to(dtype).float()
    got = _said(merged, prompts)
    say(f"merged ({cfg.dtype}) against unmerged (fp32): {_difference(got, expected)}")
    drift = float((got - expected).abs().mean())
    if not drift <= MOST_DRIFT[cfg.dtype]:
        raise ModelError(
            f"model.path: merged, {cfg.model.path} says something else: it differs by "
            f"{drift:.1e} in the mean, more than {MOST_DRIFT[cfg.dtype]:g}. Try dtype=fp32"
        )
    return merged.to(dtype)


def _on_packed_base(
    cfg: MergeConfig, source: Source, tokenizer: Any, prompts: list[Tensor]
) -> Tensor:
    from rlhf_cli.models.attach import attach

    cpu = torch.device("cpu")
    packed = quantization(
        source.quant, source.double, torch.float32, output_layer=source.output_layer
    )
    model = load_base(
        cfg.model,
        source.folder,
        tokenizer,
        SHAPES[source.kind],
        adapters=source.adapters,
        quantized=packed,
        device=cpu,
        fit=scorer_fit(source) if source.kind == "reward_model" else None,
    )
    adapted = attach(model, source, AdapterConfig(), 0).model
    to_eval(adapted)
    return _said(adapted, prompts)


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


def _save(cfg: MergeConfig, model: Any, tokenizer: Any) -> Path:
    """All of it under its name, or nothing."""
    target = Path(cfg.output_dir).absolute()
    partial = target.with_name(f".{target.name}.tmp")
    model.config.dtype = PRECISIONS[cfg.dtype]
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
                "dtype": cfg.dtype,
                RECORD: tokenization_hash(tokenizer),
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
