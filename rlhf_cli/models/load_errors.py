"""Errors of loading: folders without a model, and exceptions of libraries; needs no torch."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_cli.errors import ModelError, RlhfError, first_line
from rlhf_cli.runs import artifact


def require_model_folder(source: str) -> None:
    """Refuse a local folder that holds no model.

    Raises:
        ModelError: it has no config.
    """
    needed = ("config.json", artifact.ADAPTER_CONFIG)
    if Path(source).is_dir() and not any((Path(source) / name).is_file() for name in needed):
        raise ModelError(
            f"model.path: {source} has no config.json; need a model folder, a finished run or a "
            "hub id. Try model=tiny"
        )


@contextmanager
def convert_load_errors(key: str, source: str) -> Iterator[None]:
    """Convert exceptions of libraries, of any type, to a ModelError of one line.

    Args:
        key: config key, for the message.
        source: its value.

    Raises:
        ModelError: names the key, the source and the library's reason.
    """
    try:
        yield
    except (RlhfError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's; torch is not imported here
            raise
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{key}: {source} brings Python code of its own, which is run when it is loaded. "
                "Read it, and if you trust it try model.trust_remote_code=true"
            ) from error
        reason = textwrap.shorten(first_line(error), 300)  # some list every architecture
        raise ModelError(f"{key}: cannot load {source}: {reason}") from error
