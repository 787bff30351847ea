"""Paths named by keys: what they are relative to, whether they exist, and which a config names.

`os.path` rather than `Path` asks the file system: it answers no, not with an exception, for a name
that is too long or has an unknown `~user`.
"""

import ast
import os.path
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

from rlhf_cli.config.schema import (
    Constraints,
    DataPath,
    FilePath,
    FunctionPath,
    InvalidValue,
    ModelPath,
    field_types,
    is_group,
    no_rows,
    options,
    split_annotated,
)
from rlhf_cli.config.suggest import nearest, nearest_path
from rlhf_cli.resources import SHIPPED, shipped_folder

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")

_SHOWN = 8
"""Names of functions that a message lists."""

InputKind = DataPath | ModelPath | FilePath | FunctionPath


def input_kind(constraints: Constraints) -> InputKind | None:
    """The annotation that makes a text a path to read from, if there is one."""
    return next((item for item in constraints if isinstance(item, InputKind)), None)


# Paths in recipes


def anchor(value: str, folder: Path, words: Sequence[str] = ()) -> str:
    """Resolve a path from a recipe: `./x`, `../x` and names beside the recipe are relative to it.

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
    """Resolve all paths in the value of a key of that kind; other values stay unchanged."""
    bare, constraints = split_annotated(kind)
    path_kind = input_kind(constraints)
    if path_kind:
        return _anchor_paths(value, folder, _words(path_kind))
    if get_origin(bare) is list and is_group(get_args(bare)[0]) and isinstance(value, list):
        kinds = field_types(get_args(bare)[0])
        return [_anchor_group(kinds, item, folder) for item in value]
    return value


def _words(kind: InputKind) -> Sequence[str]:
    """Values of a key that are no paths, even where a file has that name."""
    return kind.words if isinstance(kind, ModelPath) else ()


def _anchor_paths(value: Any, folder: Path, words: Sequence[str]) -> Any:
    """Resolve a path, a list of paths, or sources with a `path` each."""
    if isinstance(value, str):
        return anchor(value, folder, words)
    if isinstance(value, list):
        return [_anchor_paths(item, folder, words) for item in value]
    if isinstance(value, dict) and "path" in value:
        return {**value, "path": _anchor_paths(value["path"], folder, words)}
    return value


def _anchor_group(kinds: dict[str, Any], value: Any, folder: Path) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: anchor_all(kinds.get(key, Any), item, folder) for key, item in value.items()}


# Whether a path exists


def locate(kind: InputKind, value: str) -> str:
    """The absolute path of a value that exists here; other names unchanged.

    Raises:
        InvalidValue: It is neither here nor a name that needs no file.
    """
    if isinstance(kind, FunctionPath):
        return _locate_function(value)
    if value in ("", SHIPPED, *_words(kind)) or (isinstance(kind, DataPath) and no_rows(value)):
        return value
    path = os.path.abspath(os.path.expanduser(value))
    if isinstance(kind, ModelPath):
        return value if kind.urls and is_url(value) else _locate_model(value, path)
    if os.path.isfile(path) or (os.path.isdir(path) and isinstance(kind, DataPath)):
        return path
    if isinstance(kind, DataPath) and is_data_id(value):
        return value
    needed = "a file or folder" if isinstance(kind, DataPath) else "a file"
    default = SHIPPED if isinstance(kind, DataPath) else ""
    raise InvalidValue(f"need {needed} that exists", nearest_path(value) or default)


def _locate_model(value: str, path: str) -> str:
    if os.path.isdir(path):
        return path
    if os.path.isfile(path):
        raise InvalidValue("need the model's folder, not a file", os.path.dirname(value) or ".")
    first, slash, _ = value.partition("/")
    # `runs/sft` could be a hub id, but not where there is a folder `runs`
    if _HUB_ID.fullmatch(value) and not (slash and os.path.isdir(first)):
        return value
    needed = "need a model folder, run folder or hub id; not found here"
    raise InvalidValue(needed, nearest_path(value) or SHIPPED)


def as_typed(path: str) -> str:
    """A path below the working folder as the user would type it; others unchanged."""
    short = os.path.relpath(path) if os.path.isabs(path) else path
    return path if short.startswith("..") else short


def is_url(value: str) -> bool:
    """Whether a value is the address of a server, not a path."""
    return value.startswith(("http://", "https://"))


def is_data_id(value: str) -> bool:
    """Whether a name that is not here can be a hub data set: `org/name`, no file's name."""
    first, slash, last = value.partition("/")
    file = last.lower().removesuffix(".gz").endswith(DATA_SUFFIXES)
    return bool(_HUB_ID.fullmatch(value) and slash) and not file and not os.path.isdir(first)


def expand(value: str) -> str:
    """A path to write to, with `~` as the home folder."""
    return os.path.expanduser(value)


# Python functions, as `FILE.py:FUNCTION`; the file is read, not run


def _locate_function(value: str) -> str:
    """The same with an absolute path.

    Raises:
        InvalidValue: There is no such file, or it defines no such name.
    """
    if not value:
        return value
    file, colon, name = value.rpartition(":")
    if not colon or not file or not name.isidentifier():
        whole = file if colon and not name else value
        raise InvalidValue("need FILE.py:FUNCTION", _first_function(whole))
    path = os.path.abspath(os.path.expanduser(file))
    if not os.path.isfile(path):  # a shipped one has a name, as `tiny/judge.py`
        path = os.path.abspath(shipped_folder("recipes") / file)
    if not os.path.isfile(path):
        close = nearest_path(file)
        raise InvalidValue("need a file that exists", f"{close}:{name}" if close else "")
    names = _defined(path, file)
    if "*" not in names and name not in names:
        close = nearest(name, names) or next(iter(names), "")
        has = f"it has {', '.join(names[:_SHOWN])}" if names else "it has none"
        raise InvalidValue(f"{file} defines no {name}, {has}", f"{file}:{close}" if close else "")
    return f"{path}:{name}"


def _first_function(file: str) -> str:
    """The first function of a file, as `FILE.py:FUNCTION`; empty where there is none."""
    path = os.path.abspath(os.path.expanduser(file))
    if not file.endswith(".py") or not os.path.isfile(path):
        return ""
    return next((f"{file}:{name}" for name in _defined(path, file) if name != "*"), "")


def _defined(path: str, shown: str) -> list[str]:
    """The names that a file defines, functions first; `*` among them where it has a star import.

    Raises:
        InvalidValue: It is no Python.
    """
    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read())
    except SyntaxError as error:
        line = f":{error.lineno}" if error.lineno else ""
        raise InvalidValue(f"{shown}{line} is not valid Python ({error.msg})") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidValue(f"{shown} cannot be read as Python ({error})") from None
    statements = list(_top_level(tree.body))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [node.name for node in statements if isinstance(node, kinds)]
    others = [name for node in statements for name in _bound_names(node)]
    return list(dict.fromkeys([*functions, *others]))


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, with those under its `if`, `try` and `with`."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            for name in ("body", "orelse", "finalbody"):
                yield from _top_level(getattr(node, name, []))
            for handler in getattr(node, "handlers", []):
                yield from _top_level(handler.body)


def _bound_names(node: ast.stmt) -> Iterator[str]:
    """The names that a statement other than a function definition binds."""
    if isinstance(node, ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (
            part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)
        )


# What a configuration names to be read


@dataclass(frozen=True)
class Input:
    """A value that names something to read.

    Attributes:
        key: dotted, with an index in a list, as in `data.path[1].path`.
        value: a path, a hub id, or a name such as `tiny`.
        kind: what it names.
        beside: the keys of the group that it stands in, such as `data_dir` beside `data.path`.
    """

    key: str
    value: str
    kind: InputKind
    beside: dict[str, Any] = field(default_factory=dict)

    @property
    def names_file(self) -> bool:
        """Whether the value is not one of the names, or an address, that the key also takes."""
        address = isinstance(self.kind, ModelPath) and self.kind.urls and is_url(self.value)
        return not address and self.value not in ("", SHIPPED, *_words(self.kind))


def named_inputs(values: dict[str, Any], config: type[Any]) -> Iterator[Input]:
    """Every input in nested values.

    Args:
        values: keys of a config class with plain values; keys may be missing.
        config: the class.
    """
    for option in options(config).values():
        value: Any = values
        beside: dict[str, Any] = {}
        for part in option.key.split("."):
            beside = value if isinstance(value, dict) else {}
            value = beside.get(part)
        bare, constraints = split_annotated(option.type)
        kind = input_kind(constraints)
        if kind:
            yield from _inputs(option.key, value, kind, beside)
        elif get_origin(bare) is list and is_group(get_args(bare)[0]):
            yield from _inputs_in_groups(option.key, value, field_types(get_args(bare)[0]))


def _inputs_in_groups(key: str, value: Any, kinds: dict[str, Any]) -> Iterator[Input]:
    """The inputs in each item of a list, whose keys are of these kinds."""
    for i, item in enumerate(value if isinstance(value, list) else []):
        for name, given in item.items() if isinstance(item, dict) else ():
            kind = input_kind(split_annotated(kinds.get(name, Any))[1])
            if kind:
                yield from _inputs(f"{key}[{i}].{name}", given, kind, item)


def _inputs(key: str, value: Any, kind: InputKind, beside: dict[str, Any]) -> Iterator[Input]:
    """One path, several, or sources with a `path` each, whose own keys take precedence."""
    if isinstance(value, str):
        yield Input(key, value, kind, beside)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _inputs(f"{key}[{i}]", item, kind, beside)
    elif isinstance(value, dict) and "path" in value:
        own = {name: given for name, given in value.items() if given}
        yield from _inputs(f"{key}.path", value["path"], kind, {**beside, **own})
