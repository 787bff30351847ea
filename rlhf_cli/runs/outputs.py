"""The file that `output=` names: checked, written beside its name, then renamed."""

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

_RUN_NAMES = {
    *run_files.FILES,
    *run_files.FOLDERS,
    run_files.CHECKPOINTS,
    run_files.MANIFEST,
    lock.NAME,
}


def partial_path(target: Path) -> Path:
    """Path under which a file is written until it is complete."""
    return target.with_name(f"{target.name}.partial")


def check_output(config: Any) -> list[str]:
    """Report an `output` that would replace an input of this command or a file of a run.

    Args:
        config: instance of a config class with a field `output`; its paths are absolute.
    """
    output = Path(config.output or os.devnull).resolve()
    replaced = [str(path) for path in (output, partial_path(output)) if path.is_file()]
    for key, files in (
        inputs.list_input_files(asdict(config), type(config)).items() if replaced else ()
    ):
        for path in replaced:
            if any(os.path.samefile(path, file) for file in files):
                what = f"which would replace {path}, a file that {key} reads"
                return [f"output: got {config.output}, {what}; need another file"]
    for folder in output.parents:
        if output.relative_to(folder).parts[0] in _RUN_NAMES and _is_run(folder):
            what = f"which belongs to the run in {folder}"
            return [f"output: got {config.output}, {what}; need another file"]
    return []


def _is_run(folder: Path) -> bool:
    return (folder / run_files.MANIFEST).is_file()


Write = Callable[[str], None]
"""Appends text to the file; raises DataError if it cannot."""


@contextmanager
def open_output(output: Path) -> Iterator[Write]:
    """Open a file that replaces an older one only when the block ends.

    Text is written to `<output>.partial`, which remains after an error unless it is empty. A device
    or pipe is written directly.

    Raises:
        DataError: the file cannot be written; raised before the block if that is known then.
    """
    special = output.exists() and not output.is_file() and not output.is_dir()
    # the target of a link is replaced, not the link; a pipe's link has no target
    target = output if special else output.resolve()
    partial = target if special else partial_path(target)

    def write(text: str) -> None:
        with _raising_data_error(output), partial.open("a", encoding="utf-8", newline="\n") as file:
            file.write(text)

    with _raising_data_error(output):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.open("w", encoding="utf-8").close()
    try:
        yield write
    except BaseException:
        if not special:
            _keep_partial(partial)
        raise
    if not special:
        with _raising_data_error(output):
            _rename(partial, target)


@contextmanager
def _raising_data_error(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"output: {output} cannot be written ({error.strerror})") from error


def _rename(partial: Path, target: Path) -> None:
    """Rename the finished file; it keeps the permissions of the file that it replaces."""
    if target.exists():
        shutil.copymode(target, partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(target)


def _keep_partial(partial: Path) -> None:
    with suppress(OSError):  # the error that ended the block matters more
        if partial.stat().st_size:
            logger.info(f"output: what was written so far is in {partial}")
        else:
            partial.unlink()
