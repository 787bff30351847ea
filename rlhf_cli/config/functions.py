"""Python functions named by a key, as `FILE.py:FUNCTION`; the file is read, not run."""

import ast
import os.path
from collections.abc import Iterator

from rlhf_cli.config.nearest import nearest, nearest_path
from rlhf_cli.config.schema import Unfit
from rlhf_cli.resources import shipped_folder

_SHOWN = 8


def locate(value: str) -> str:
    """The same with an absolute path.

    Raises:
        Unfit: There is no such file, or it defines no such name.
    """
    if not value:
        return value
    file, colon, name = value.rpartition(":")
    if not colon or not file or not name.isidentifier():
        whole = file if colon and not name else value
        raise Unfit("need FILE.py:FUNCTION", _first_of(whole))
    path = os.path.abspath(os.path.expanduser(file))
    if not os.path.isfile(path):  # a shipped one has a name, as `tiny/judge.py`
        path = os.path.abspath(shipped_folder("recipes") / file)
    if not os.path.isfile(path):
        close = nearest_path(file)
        raise Unfit("need a file that exists", f"{close}:{name}" if close else "")
    names = _defined(path, file)
    if "*" not in names and name not in names:
        close = nearest(name, names) or next(iter(names), "")
        has = f"it has {', '.join(names[:_SHOWN])}" if names else "it has none"
        raise Unfit(f"{file} defines no {name}, {has}", f"{file}:{close}" if close else "")
    return f"{path}:{name}"


def _first_of(file: str) -> str:
    """The first function of a file, by its name; nothing where there is none."""
    path = os.path.abspath(os.path.expanduser(file))
    if not file.endswith(".py") or not os.path.isfile(path):
        return ""
    return next((f"{file}:{name}" for name in _defined(path, file) if name != "*"), "")


def _defined(path: str, shown: str) -> list[str]:
    """The names that a file defines, functions first; `*` among them where it imports all of some.

    Raises:
        Unfit: It is no Python.
    """
    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read())
    except SyntaxError as error:
        line = f":{error.lineno}" if error.lineno else ""
        raise Unfit(f"{shown}{line} is not valid Python ({error.msg})") from None
    except (OSError, ValueError, RecursionError) as error:
        raise Unfit(f"{shown} cannot be read as Python ({error})") from None
    statements = list(_top_level(tree.body))
    functions = [node.name for node in statements if isinstance(node, ast.FunctionDef)]
    others = [name for node in statements for name in _names(node)]
    return list(dict.fromkeys([*functions, *others]))


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, those under its `if`, `try` and `with` too."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            for name in ("body", "orelse", "finalbody"):
                yield from _top_level(getattr(node, name, []))
            for handler in getattr(node, "handlers", []):
                yield from _top_level(handler.body)


def _names(node: ast.stmt) -> Iterator[str]:
    """What a statement other than a function's definition binds."""
    if isinstance(node, ast.ClassDef | ast.AsyncFunctionDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (
            part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)
        )
