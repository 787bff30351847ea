"""Loading a model that scores: what is said of it names the key that the user typed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from rlhf_cli.context import precision_name
from rlhf_cli.errors import ModelError
from rlhf_cli.models.checks import convert_load_errors, refuse_encoder_decoder
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.load import context_length
from rlhf_cli.models.resolve import ModelSource, resolve_model
from rlhf_cli.runs import artifact
from rlhf_cli.runs.labels import labels_of

NO_LIMIT = 2**31 - 1
"""Tokens; tokenizers that know no limit name one that no library takes for a length."""

_ADVICE = re.compile(r"[.;,]? (or )?(Try|give another with|give one with) model[.=][^;]*$")
"""About the model that is trained; it helps nobody here."""


@contextmanager
def told_as(key: str, base_key: str = "model.base") -> Iterator[None]:
    """Let an error that speaks of `model.path` and `model.base` speak of other keys.

    Raises:
        ModelError: with the keys replaced.
    """
    try:
        yield
    except ModelError as error:
        text = _ADVICE.sub("", str(error)).replace("model.path", key)
        text = text.replace("model.base", base_key)
        raise ModelError(text if key in text else f"{key}: {text}") from error


def require_scores(cfg: ModelConfig) -> None:
    """Refuse a model that has no trained head with one label.

    Raises:
        ModelError: it writes text, or has several labels.
    """
    source = resolve_model(cfg)
    if source.adapters:
        _require_scoring_adapter(cfg.path, source)
        return
    with convert_load_errors("model.path", cfg.path):
        config = AutoConfig.from_pretrained(source.folder)
    refuse_encoder_decoder(cfg.path, config)
    classes = config.architectures or []
    if not any(name.endswith("ForSequenceClassification") for name in classes):
        raise ModelError(f"model.path: {cfg.path} {_no_scores(', '.join(classes))}")
    labels = labels_of(config.to_dict())
    if len(labels) > 1:
        raise ModelError(
            f"model.path: {cfg.path} is a classifier with {len(labels)} labels; need one with a "
            "single label, or classifier= and label= to say which one counts"
        )


def _require_scoring_adapter(path: str, source: ModelSource) -> None:
    task = artifact.settings(source.adapters[-1], artifact.ADAPTER).get("task_type")
    if source.kind != "reward_model" and task != "SEQ_CLS":
        raise ModelError(f"model.path: {path} {_no_scores(f'an adapter for {task}')}")


def _no_scores(found: str) -> str:
    return (
        f"gives no scores ({found or 'its config names no class'}); need a run of rlhf reward or "
        "another sequence classifier with one label"
    )


def longest_text(model: Any, tokenizer: Any) -> int:
    """Tokens that a model can read at once, by its positions and by its tokenizer."""
    return min(context_length(model) or NO_LIMIT, int(tokenizer.model_max_length), NO_LIMIT)


def nbytes(module: nn.Module) -> int:
    """Memory of the parameters, in bytes."""
    return sum(p.numel() * p.element_size() for p in module.parameters())


def dtype_name(module: nn.Module) -> str:
    """The type of the parameters, in words; that of the unpacked ones where some are packed."""
    found = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    return precision_name(found)
