"""Whether a file that `output=` names may be replaced.

A file that the user named with `output=`: written beside its name, then renamed.
"""

from __future__ import annotations

import errno
import os
import os.path
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf_cli.console import logger
from rlhf_cli.errors import DataError
from rlhf_cli.runs import inputs, lock, run_files

_OF_RUN = {
    *run_files.FILES,
    *run_files.FOLDERS,
    run_files.CHECKPOINTS,
    run_files.MANIFEST,
    lock.NAME,
}


def partial_name(target: Path) -> Path:
    """Where a file is written until it is complete."""
    return target.with_name(f"{target.name}.partial")


def output_problems(config: Any) -> list[str]:
    """The line for an `output` that is a file of this command's inputs, or that a run holds.

    Args:
        config: an instance of a config class with a field `output`; paths in it are absolute.
    """
    output = Path(config.output or os.devnull).resolve()
    replaced = [str(path) for path in (output, partial_name(output)) if path.is_file()]
    for key, files in inputs.files_read(asdict(config), type(config)).items() if replaced else ():
        for path in replaced:
            if any(os.path.samefile(path, file) for file in files):
                what = f"which would replace {path}, a file that {key} reads"
                return [f"output: got {config.output}, {what}; need another file"]
    for folder in output.parents:
        if output.relative_to(folder).parts[0] in _OF_RUN and _is_run(folder):
            what = f"which belongs to the run in {folder}"
            return [f"output: got {config.output}, {what}; need another file"]
    return []


def _is_run(folder: Path) -> bool:
    return (folder / run_files.MANIFEST).is_file()


Write = Callable[[str], None]
"""Adds text to the file; raises DataError where it cannot."""


@contextmanager
def writing(output: Path) -> Iterator[Write]:
    """Write a file that takes its name when the block ends; until then an older one stands.

    Text goes to `<output>.partial` at once. After an error that file stays, unless it is empty.
    A device or a pipe is written to directly.

    Raises:
        DataError: the file cannot be written; raised before the block where that is known then.
    """
    special = output.exists() and not output.is_file() and not output.is_dir()
    # a link stays, and the file that it names is replaced; the link of a pipe names no file
    target = output if special else output.resolve()
    partial = target if special else partial_name(target)

    def write(text: str) -> None:
        with _saying_where(output), partial.open("a", encoding="utf-8", newline="\n") as file:
            file.write(text)

    with _saying_where(output):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.open("w", encoding="utf-8").close()
    try:
        yield write
    except BaseException:
        if not special:
            _keep_what_is_written(partial)
        raise
    if not special:
        with _saying_where(output):
            _rename(partial, target)


@contextmanager
def _saying_where(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"output: {output} cannot be written ({error.strerror})") from error


def _rename(partial: Path, target: Path) -> None:
    """Give a finished file its name, and the permissions of the file that it replaces."""
    if target.exists():
        shutil.copymode(target, partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(target)


def _keep_what_is_written(partial: Path) -> None:
    with suppress(OSError):  # the error that ended the work matters more
        if partial.stat().st_size:
            logger.info(f"output: what was written so far is in {partial}")
        else:
            partial.unlink()
