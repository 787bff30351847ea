"""The longest row that a model can read."""

from __future__ import annotations

from typing import Any


def context_length(model: Any) -> int | None:
    """Return the longest row that the model's positions allow, where its config says."""
    config = model.config.get_text_config()
    length = getattr(config, "max_position_embeddings", None)
    return int(length) - _first_position(model) if length and length > 0 else None  # XLNet: -1


def _first_position(model: Any) -> int:
    """Return the first position; RoBERTa and its relatives count from the padding id + 1."""
    for name, module in model.named_modules():
        if (
            name.endswith("position_embeddings")
            and getattr(module, "padding_idx", None) is not None
        ):
            return int(module.padding_idx) + 1
    return 0
