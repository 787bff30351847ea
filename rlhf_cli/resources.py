"""The files that ship with the package."""

from pathlib import Path
from typing import Literal

PACKAGE = Path(__file__).resolve().parent


def shipped(kind: Literal["configs", "recipes"]) -> Path:
    """The folder of group files or recipes: in the package of a wheel, else the repository's."""
    installed = PACKAGE / kind
    return installed if installed.is_dir() else PACKAGE.parent / kind


def options(group: str) -> list[str]:
    """The names that `group=NAME` can take."""
    return sorted(path.stem for path in (shipped("configs") / group).glob("*.yaml"))


def recipes() -> list[str]:
    """The names that `config=NAME` can take, as in `tiny/sft`."""
    root = shipped("recipes")
    return sorted(
        path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml")
    )
