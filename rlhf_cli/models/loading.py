"""What a model's folder must hold, and what is said where one cannot be loaded."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from rlhf_cli.errors import ModelError, RlhfError, first_line
from rlhf_cli.runs import artifact

NOT_HERE = (
    "It is no folder here, so it was taken for a hub id. Check the name and the connection, or "
    "give a folder; with HF_HUB_OFFLINE=1 only what was fetched before is used"
)


def require_config(source: str) -> None:
    """Refuse a local folder that is no model.

    Raises:
        ModelError: it has no config.
    """
    needed = ("config.json", artifact.ADAPTER)
    if Path(source).is_dir() and not any((Path(source) / name).is_file() for name in needed):
        raise ModelError(
            f"model.path: {source} has no config.json; need a model folder, a finished run or a "
            "hub id. Try model=tiny"
        )


@contextmanager
def loading(key: str, source: str, *, hub: bool) -> Iterator[None]:
    """Tell what could not be loaded in one line; libraries raise all kinds of exceptions here.

    Args:
        key: what the user set.
        source: what it was set to.
        hub: it was looked for on the hub, because there is no such folder.

    Raises:
        ModelError: names the key, the source and the library's reason.
    """
    try:
        yield
    except (RlhfError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = textwrap.shorten(first_line(error), 300)  # some name every architecture there is
        what = f"{key}: cannot load {source}: {reason}"
        raise ModelError(f"{what} {NOT_HERE}" if hub else what) from error


def require_safe_weights(folder: Path) -> None:
    """Refuse a local folder without safetensors weights.

    Raises:
        ModelError: it has only a pickle, or nothing.
    """
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for file in folder.glob("*.bin")) + sorted(
        file.name for file in folder.glob("*.pt*")
    )
    if pickles:
        raise ModelError(
            f"model.path: {folder} has its weights as a pickle ({pickles[0]}), which can run any "
            "code when it is loaded; need safetensors. Convert it where you trust it: "
            "model.save_pretrained(folder)"
        )
    raise ModelError(
        f"model.path: {folder} has a config and no weights (*.safetensors). "
        "Try model.init=scratch to start from random ones"
    )
