"""The parts of a model that read text, and those that read images or sound, which stay as they are.

A class such as Gemma3ForConditionalGeneration holds a language model beside a vision tower. Rows
are text alone here, so the tower has no gradient: with weight decay it would still change.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from rlhf_cli.console import logger


def language_parts(model: Any) -> list[nn.Module]:
    """The modules that a text goes through; the model itself where it reads nothing but text."""
    text = model.config.get_text_config()
    if text is model.config:
        return [model]
    decoder = model.get_decoder()
    heads = [model.get_output_embeddings(), getattr(model, "score", None)]
    return [decoder, *(head for head in heads if head is not None)]


def other_parts(model: Any) -> list[str]:
    """Names of the outermost modules that no text goes through, as `model.vision_tower`."""
    kept = {id(module) for part in language_parts(model) for module in part.modules()}
    found: list[str] = []

    def visit(module: nn.Module, name: str) -> None:
        for child_name, child in module.named_children():
            full = f"{name}.{child_name}" if name else child_name
            if id(child) in kept:
                continue
            if any(id(inner) in kept for inner in child.modules()):
                visit(child, full)
            else:
                found.append(full)

    if id(model) not in kept:
        visit(model, "")
    return found


def freeze_other_parts(model: Any) -> None:
    """Train the language model alone; one line where there is anything else."""
    names = other_parts(model)
    for name in names:
        model.get_submodule(name).requires_grad_(False)
    if names:
        logger.info(f"text alone is read: {', '.join(names)} stay as they are")


def others_pattern(model: Any) -> str | None:
    """A regular expression of the names of all modules that no text goes through, for PEFT."""
    names = other_parts(model)
    whole = "|".join(re.escape(name) for name in names)
    return rf"({whole})(\..*)?" if names else None
