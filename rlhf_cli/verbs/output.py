"""A file that the user named with `output=`."""

from __future__ import annotations

from pathlib import Path

from rlhf_cli.errors import DataError


def open_output(target: Path) -> Path:
    """An empty file; refused before the work starts where it cannot be written.

    Raises:
        DataError: says why it cannot.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("", encoding="utf-8")
    except OSError as error:
        raise _unwritable(target, error) from error
    return target


def append(target: Path, text: str) -> None:
    """Write what there is so far.

    Raises:
        DataError: says why it cannot.
    """
    try:
        with target.open("a", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except OSError as error:
        raise _unwritable(target, error) from error


def _unwritable(target: Path, error: OSError) -> DataError:
    return DataError(f"output: {target} cannot be written ({error.strerror})")
