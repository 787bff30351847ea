"""Files that ship with the package, and its cache folder."""

import os
from pathlib import Path
from typing import Literal

PACKAGE = Path(__file__).resolve().parent

SHIPPED = "tiny"
"""Name of the shipped model, rows and recipes."""


def shipped_folder(kind: Literal["configs", "recipes", "docs"]) -> Path:
    """Path of a shipped folder: in the package in a wheel, else at the top of the repository."""
    installed = PACKAGE / kind
    return installed if installed.is_dir() else PACKAGE.parent / kind


def shipped_model(name: str = SHIPPED) -> Path:
    """Folder of a shipped model: config and tokenizer, no weights."""
    return shipped_folder("recipes") / name / "model"


ROWS_OF = {"online dpo": "ppo", "grpo": "ppo", "distill": "sft"}
"""Stage -> the stage whose shipped rows it reads, where it has none of its own."""


def shipped_rows(stage: str, split: Literal["train", "test"]) -> Path:
    """File of a stage's shipped rows; not every stage has one."""
    name = ROWS_OF.get(stage, stage)
    return shipped_folder("recipes") / SHIPPED / "data" / f"{name}_{split}.jsonl"


def presets(group: str) -> list[str]:
    """Choices of `group=NAME`."""
    return sorted(path.stem for path in (shipped_folder("configs") / group).glob("*.yaml"))


def recipe_names() -> list[str]:
    """Choices of `config=NAME`, as `tiny/sft`."""
    root = shipped_folder("recipes")
    return sorted(
        path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml")
    )


def page_names() -> list[str]:
    """Choices of `rlhf docs NAME`."""
    return sorted(path.stem for path in shipped_folder("docs").glob("*.md"))


def cache_folder() -> Path:
    """Cache folder: `$RLHF_CACHE`, else `~/.cache/rlhf`."""
    return Path(os.path.expanduser(os.environ.get("RLHF_CACHE") or "~/.cache/rlhf"))
