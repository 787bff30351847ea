"""The floors of the package: a module imports its own floor or a lower one, never in a circle."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import rlhf_cli

ROOT = Path(rlhf_cli.__file__).parent
MODULES = {
    ".".join(("rlhf_cli", *file.relative_to(ROOT).with_suffix("").parts)): file
    for file in sorted(ROOT.rglob("*.py"))
}
FLOORS = {
    **dict.fromkeys(("console", "cores", "errors", "resources"), 0),
    **dict.fromkeys(("config", "configs", "registry", "runs", "preflight", "resolve", "sweep"), 0),
    **dict.fromkeys(("context", "evaluation", "kernels", "logprobs", "losses", "distributed"), 1),
    **dict.fromkeys(("cache", "progress"), 1),
    **dict.fromkeys(("data", "models"), 2),
    **dict.fromkeys(("rewards", "rollout", "train"), 3),
    "stages": 4,
    **dict.fromkeys(("commands", "launch", "cli", "__main__"), 5),
}
TO_CUT: set[tuple[str, str]] = set()
"""Pairs of units that import each other and are not to; the list may only get shorter."""

HEAVY = {"torch", "transformers", "datasets", "accelerate", "peft", "numpy", "safetensors"}


def unit(module: str) -> str:
    """The package or top-level module of a module; all `config.py` with config classes are one."""
    parts = module.split(".")
    if parts[-1] == "config" and len(parts) > 2:
        return "configs"
    return parts[1]


def floor(module: str) -> int:
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
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        within = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if name in MODULES else str(node.module) for name in within]
    return []


def ours(module: str) -> list[str]:
    return sorted(name for name in imports(module) if name in MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_its_own_floor_or_a_lower_one(module):
    above = [name for name in ours(module) if floor(name) > floor(module)]
    assert above == []


@pytest.mark.parametrize("module", [name for name in MODULES if floor(name) == 0])
def test_floor_0_imports_nothing_heavy(module):
    assert {name.partition(".")[0] for name in imports(module)} & HEAVY == set()


@pytest.mark.parametrize(
    "module",
    [name for name in MODULES if not name.endswith("__init__") and unit(name) == "configs"],
)
def test_config_classes_are_values(module):
    """What they name is looked at in preflight/, so that a config can be made anywhere."""
    assert {unit(name) for name in ours(module)} <= {"config", "configs", "resources"}
    calls = {"find_spec", "isdir", "isfile", "exists", "open", "listdir", "read_text", "stat"}
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    called = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    assert {getattr(func, "attr", getattr(func, "id", "")) for func in called} & calls == set()


@pytest.mark.parametrize("module", [name for name in MODULES if ".evaluation." in name])
def test_evaluation_is_arithmetic_on_arrays(module):
    assert all(name.startswith("rlhf_cli.evaluation") for name in ours(module))
    assert {name.partition(".")[0] for name in imports(module)} & (HEAVY - {"numpy"}) == set()


def test_no_module_is_part_of_a_circle():
    """Imports inside functions count too: they hide a circle and do not remove it."""
    TopologicalSorter({module: ours(module) for module in MODULES}).prepare()  # raises CycleError


def test_no_package_is_part_of_a_circle():
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        if not module.endswith("__init__"):
            graph.setdefault(unit(module), set()).update(unit(name) for name in ours(module))
    ties = {(one, other) for one, found in graph.items() for other in found if one != other}
    both = {tuple(sorted(tie)) for tie in ties if tie[::-1] in ties}
    assert both == TO_CUT
    cut = {tie for tie in ties if tuple(sorted(tie)) not in TO_CUT}
    above = {one: {other for start, other in cut if start == one} for one in graph}
    TopologicalSorter(above).prepare()  # raises CycleError


def test_packages_import_nothing():
    """Only the package itself has code: it imports its public names when they are first read."""
    loaded = {name: imports(name) for name in MODULES if name.endswith("__init__")}
    found = {name: found for name, found in loaded.items() if found}
    assert found == {"rlhf_cli.__init__": {"importlib", "typing"}}


@pytest.mark.parametrize(
    ("call", "allowed"),
    [
        ("all_gather_object", set()),  # pickles: what another machine sends could run code
        ("broadcast_object_list", set()),
        (
            "torch.random.fork_rng()",
            set(),
        ),  # saves the generators of all GPUs, and warns; see forked_rng
        ('torch.device("cpu")', {"context.py", "commands/merge.py"}),  # a model says where it is
    ],
)
def test_what_works_on_one_cpu_only_is_not_called(call, allowed):
    callers = {f.relative_to(ROOT).as_posix() for f in MODULES.values() if call in f.read_text()}
    assert callers <= allowed
