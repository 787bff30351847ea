"""The files that ship with the package, and the folder of those it makes for itself."""

import os
from pathlib import Path
from typing import Literal

PACKAGE = Path(__file__).resolve().parent

SHIPPED = "tiny"
"""The model, the rows and the recipes that come with the package go by this name."""


def shipped(kind: Literal["configs", "recipes", "docs"]) -> Path:
    """A folder that ships with the package: inside it in a wheel, else at the repository's top."""
    installed = PACKAGE / kind
    return installed if installed.is_dir() else PACKAGE.parent / kind


def shipped_model(name: str = SHIPPED) -> Path:
    """The folder of a shipped model: a config and a tokenizer, no weights."""
    return shipped("recipes") / name / "model"


def shipped_rows(stage: str, split: Literal["train", "test"]) -> Path:
    """The file of a stage's shipped rows; not every stage has one."""
    return shipped("recipes") / SHIPPED / "data" / f"{stage}_{split}.jsonl"


def presets(group: str) -> list[str]:
    """The names that `group=NAME` can take."""
    return sorted(path.stem for path in (shipped("configs") / group).glob("*.yaml"))


def recipes() -> list[str]:
    """The names that `config=NAME` can take, as in `tiny/sft`."""
    root = shipped("recipes")
    return sorted(
        path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml")
    )


def pages() -> list[str]:
    """The names that `rlhf docs NAME` can take."""
    return sorted(path.stem for path in shipped("docs").glob("*.md"))


def cache_folder() -> Path:
    """`$RLHF_CACHE`, else `~/.cache/rlhf`."""
    return Path(os.path.expanduser(os.environ.get("RLHF_CACHE") or "~/.cache/rlhf"))
