"""The base that a run makes for itself: random weights, or weights with an adapter merged in.

What stands on frozen weights is of use only where those can be found again, so they are written
into the run's folder first.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rlhf_cli.console import logger
from rlhf_cli.context import RunContext
from rlhf_cli.models.base import random_base
from rlhf_cli.models.config import LoadConfig
from rlhf_cli.models.source import OWN_BASE, Source, find_source


def make_base(cfg: LoadConfig, tokenizer: Any, ctx: RunContext) -> Source:
    """The source of a run's model, with weights that are nowhere else written to disk.

    Returns:
        A source without a base where training starts from random weights and keeps none of them.
    """
    scratch = cfg.model.from_scratch
    found = Source("") if scratch else find_source(cfg.model)
    merges = bool(found.adapters) and cfg.adapter.start == "merge"
    if not merges and (not scratch or cfg.adapter.kind == "none"):
        return found
    target = ctx.out / OWN_BASE
    ctx.ranks.run_on_main(lambda: _write(target, cfg, found, tokenizer, ctx.seed))
    return Source(
        str(target), quant=found.quant, double=found.double, output_layer=found.output_layer
    )


def _write(target: Path, cfg: LoadConfig, found: Source, tokenizer: Any, seed: int) -> None:
    """All of it or nothing; a run that goes on has it already."""
    if target.is_dir():
        return
    if found.adapters:
        from rlhf_cli.models.merge import load_unmerged, merge

        made = merge(load_unmerged(cfg.model, found, tokenizer))
    else:
        made = random_base(cfg.model, tokenizer, seed)
    partial = target.with_suffix(".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    made.save_pretrained(partial)
    partial.rename(target)
    logger.info(f"base: {found.describe() or 'random weights'} -> {target}")
