"""The modules of the package, the floors they stand on, and what each of them imports."""

import ast
from functools import cache
from pathlib import Path

import rlhf_cli

ROOT = Path(rlhf_cli.__file__).parent
MODULES = {
    ".".join(("rlhf_cli", *file.relative_to(ROOT).with_suffix("").parts)): file
    for file in sorted(ROOT.rglob("*.py"))
}
FLOORS = {
    **dict.fromkeys(
        ("completion", "console", "cores", "errors", "resources", "tools", "torch_free"), 0
    ),
    **dict.fromkeys(("config", "configs", "registry", "runs", "preflight", "resolve", "sweep"), 0),
    **dict.fromkeys(("diagnosis", "memory", "report"), 0),
    **dict.fromkeys(("context", "evaluation", "http_client", "kernels", "logprobs", "losses"), 1),
    **dict.fromkeys(("cache", "distributed", "progress", "watchdog"), 1),
    **dict.fromkeys(("data", "models"), 2),
    **dict.fromkeys(("rewards", "rollout", "train"), 3),
    "stages": 4,
    **dict.fromkeys(("commands", "launch", "cli", "__main__"), 5),
}
"""Unit -> its floor; a module imports its own floor or a lower one."""


def unit(module: str) -> str:
    """The package or top-level module of a module; all files with config classes are one.

    Those are the files `config.py`, and in a stage's folder also `*_config.py`.
    """
    parts = module.split(".")
    if parts[-1] == "config" and len(parts) > 2:
        return "configs"
    if parts[1] == "stages" and parts[-1].endswith("_config"):
        return "configs"
    return parts[1]


def floor(module: str) -> int:
    """The floor of a module; `__init__.py` files stand on the lowest."""
    return 0 if module.endswith("__init__") else FLOORS[unit(module)]


@cache
def imports(module: str) -> set[str]:
    """What a module imports, at load or inside a function; not what only types need."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    nodes = (node for node in ast.walk(tree) if id(node) not in typing_only)
    return {name for node in nodes for name in names(node)}


def names(node: ast.AST) -> list[str]:
    """The modules that one statement imports; none for other statements."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        within = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if name in MODULES else str(node.module) for name in within]
    return []


def own_imports(module: str) -> list[str]:
    """The modules of the package that a module imports, sorted."""
    return sorted(name for name in imports(module) if name in MODULES)


def unit_graph() -> dict[str, set[str]]:
    """Unit -> the other units that its modules import."""
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        if not module.endswith("__init__"):
            here = unit(module)
            found = {unit(name) for name in own_imports(module)}
            graph.setdefault(here, set()).update(found - {here})
    return graph
