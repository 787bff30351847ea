"""Loading weights: all that a checkpoint holds, under its own names, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging

from rlhf_cli.console import logger
from rlhf_cli.models.checkpoint_keys import WRAPPERS, Fit, listed, require_fit

logging.disable_progress_bar()  # one line of ours says what was loaded


def load_weights(auto: Any, source: str, fit: Fit, *, key: str, **options: Any) -> Any:
    """A transformers model, all parameters of which come from a checkpoint.

    Args:
        auto: a transformers auto class.
        source: folder or hub id.
        fit: what may differ between the checkpoint and the class.
        key: what the user set, for messages.
        options: of `from_pretrained`.

    Raises:
        ModelError: weights are missing, left out, or of another shape; it names them.
    """
    with _quiet():
        model, report = auto.from_pretrained(
            source,
            key_mapping=dict(WRAPPERS),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `require_fit` names them, with their shapes
            use_safetensors=True,
            **options,
        )
    _forget_wrappers(model, source)
    missing = set(report["missing_keys"]) - _tie_missing_output(model, source, report)
    require_fit(f"{key}: {source}", model, report, missing, fit)
    _untie_own_output(model, source)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of missing and unexpected weights."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _forget_wrappers(model: Any, source: str) -> None:
    """Keep `save_pretrained` from putting the removed parts of names back."""
    conversions = getattr(model, "_weight_conversions", None) or []
    kept = [entry for entry in conversions if entry.source_patterns[0] not in WRAPPERS]
    model._weight_conversions = kept
    if len(kept) < len(conversions):
        logger.info(
            f"weights: names in {source} carry the prefixes of a wrapper; they were removed"
        )


def _tie_missing_output(model: Any, source: str, report: Mapping[str, Any]) -> set[str]:
    """Tie an output layer that the file does not hold; gives the names that were tied."""
    missing = set(report["missing_keys"])
    if type(model).__name__ not in (model.config.architectures or ()):
        return set()  # a classifier's or a bare model's checkpoint: its output layer is elsewhere
    pairs = (getattr(model, "_tied_weights_keys", None) or {}).items()
    found = {target for target, tied_to in pairs if target in missing and tied_to not in missing}
    if found:
        _set_tied(model, True)
        model.tie_weights()
        model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
        logger.info(
            f"weights: {source} has no {listed(found)}, though its config says that it is not "
            "tied; it is tied to the input embeddings, and so it is in the result"
        )
    return found


def _untie_own_output(model: Any, source: str) -> None:
    """Let the config agree where the file holds an output layer that is not the embeddings."""
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
