"""Output layers that are tied to the input embeddings, where config and weights disagree on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_cli.console import logger
from rlhf_cli.models.checks import summarize_names


def tie_missing_output(model: Any, source: str, report: Mapping[str, Any]) -> set[str]:
    """Tie an output layer that the file does not hold; return the names that were tied."""
    missing = set(report["missing_keys"])
    if type(model).__name__ not in (model.config.architectures or ()):
        return set()  # a classifier's or a headless checkpoint has no output layer
    pairs = (getattr(model, "_tied_weights_keys", None) or {}).items()
    found = {target for target, tied_to in pairs if target in missing and tied_to not in missing}
    if found:
        _set_tied(model, True)
        model.tie_weights()
        model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
        logger.info(
            f"weights: {source} has no {summarize_names(found)}, though its config says that it is "
            "not tied; it is tied to the input embeddings, and so it is in the result"
        )
    return found


def untie_own_output(model: Any, source: str) -> None:
    """Correct the config where the file holds an output layer that differs from the embeddings."""
    output = model.get_output_embeddings()
    if output is None or not getattr(model, "_tied_weights_keys", None):
        return
    tied = output.weight is model.get_input_embeddings().weight
    if model.config.get_text_config().tie_word_embeddings and not tied:
        _set_tied(model, False)
        logger.info(
            f"weights: the config of {source} ties the output layer to the input embeddings, but "
            "the file holds other values for it; they are used, and the result is not tied"
        )


def _set_tied(model: Any, tied: bool) -> None:
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = tied
