"""Paths named by keys: against what they are relative, and whether they can be there.

`os.path` rather than `Path` asks the file system: it answers no, not with an exception, for a name
that is too long or has an unknown `~user`.
"""

import os.path
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from rlhf_cli.config import functions
from rlhf_cli.config.nearest import nearest_path
from rlhf_cli.config.schema import (
    DataPath,
    FilePath,
    FunctionPath,
    Marks,
    ModelPath,
    Unfit,
    field_types,
    is_group,
    no_rows,
    unmark,
)
from rlhf_cli.errors import CheckpointError, ModelError
from rlhf_cli.resources import SHIPPED
from rlhf_cli.runs.artifact import resolve_run

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")

InputMark = DataPath | ModelPath | FilePath | FunctionPath


def input_mark(marks: Marks) -> InputMark | None:
    """The mark that makes a text a path to read from, if there is one."""
    return next((mark for mark in marks if isinstance(mark, InputMark)), None)


def anchor(value: str, folder: Path, words: Sequence[str] = ()) -> str:
    """A path from a recipe: `./x`, `../x` and names beside the recipe are relative to it.

    Args:
        value: as the recipe has it.
        folder: of the recipe.
        words: values of the key that are no paths, whatever lies beside the recipe.
    """
    relative = value in (".", "..") or value.startswith(("./", "../"))
    word = value == SHIPPED or value in words or no_rows(value)
    file = value.rpartition(":")[0] or value  # of `judge.py:score`
    beside = not word and any(os.path.exists(folder / name) for name in (value, file))
    return os.path.abspath(folder / value) if relative or beside else value


def anchor_all(kind: Any, value: Any, folder: Path) -> Any:
    """The same for all paths in the value of a key of that kind; other values unchanged."""
    bare, marks = unmark(kind)
    mark = input_mark(marks)
    if mark:
        return _anchor_marked(value, folder, _words(mark))
    if get_origin(bare) is list and is_group(get_args(bare)[0]) and isinstance(value, list):
        kinds = field_types(get_args(bare)[0])
        return [_anchor_group(kinds, item, folder) for item in value]
    return value


def _words(mark: InputMark) -> Sequence[str]:
    """Values of a key that are no paths, even where a file has that name."""
    return mark.words if isinstance(mark, ModelPath) else ()


def _anchor_marked(value: Any, folder: Path, words: Sequence[str]) -> Any:
    """A path, a list of paths, or sources with a `path` each."""
    if isinstance(value, str):
        return anchor(value, folder, words)
    if isinstance(value, list):
        return [_anchor_marked(item, folder, words) for item in value]
    if isinstance(value, dict) and "path" in value:
        return {**value, "path": _anchor_marked(value["path"], folder, words)}
    return value


def _anchor_group(kinds: dict[str, Any], value: Any, folder: Path) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: anchor_all(kinds.get(key, Any), item, folder) for key, item in value.items()}


def locate(mark: InputMark, value: str) -> str:
    """The absolute path of a value that exists here; other names unchanged.

    Raises:
        Unfit: It is neither here nor a name that needs no file.
    """
    if isinstance(mark, FunctionPath):
        return functions.locate(value)
    if value in ("", SHIPPED, *_words(mark)) or (isinstance(mark, DataPath) and no_rows(value)):
        return value
    path = os.path.abspath(os.path.expanduser(value))
    if isinstance(mark, ModelPath):
        return _locate_model(value, path)
    if os.path.isfile(path) or (os.path.isdir(path) and isinstance(mark, DataPath)):
        return path
    if isinstance(mark, DataPath) and is_data_id(value):
        return value
    kind = "a file or folder" if isinstance(mark, DataPath) else "a file"
    shipped = SHIPPED if isinstance(mark, DataPath) else ""
    raise Unfit(f"need {kind} that exists", nearest_path(value) or shipped)


def _locate_model(value: str, path: str) -> str:
    if os.path.isdir(path):
        try:
            resolve_run(Path(path))
        except (ModelError, CheckpointError) as error:
            raise Unfit(f"need a finished run; {error}") from None
        return path
    if os.path.isfile(path):
        raise Unfit("need the model's folder, not a file", os.path.dirname(value) or ".")
    first, slash, _ = value.partition("/")
    # `runs/sft` could be a hub id, but not where there is a folder `runs`
    if _HUB_ID.fullmatch(value) and not (slash and os.path.isdir(first)):
        return value
    needed = "need a model folder, run folder or hub id; not found here"
    raise Unfit(needed, nearest_path(value) or SHIPPED)


def is_data_id(value: str) -> bool:
    """Whether a name that is not here can be a hub data set: `org/name`, no file's name."""
    first, slash, last = value.partition("/")
    file = last.lower().removesuffix(".gz").endswith(DATA_SUFFIXES)
    return bool(_HUB_ID.fullmatch(value) and slash) and not file and not os.path.isdir(first)


def expand(value: str) -> str:
    """A path to write to, with `~` as the home folder."""
    return os.path.expanduser(value)
