"""Whether a file that `output=` names may be replaced."""

import os.path
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf_cli.runs import contents, inputs, lock

_OF_RUN = {
    *contents.FILES,
    *contents.FOLDERS,
    contents.CHECKPOINTS,
    contents.MANIFEST,
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
    return (folder / contents.MANIFEST).is_file()
