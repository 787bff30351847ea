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
    **dict.fromkeys(("config", "command_line", "runs", "sweep"), 0),
    **dict.fromkeys(("context", "evaluation", "kernels", "logprobs", "losses", "distributed"), 1),
    **dict.fromkeys(("cache", "progress"), 1),
    **dict.fromkeys(("data", "models"), 2),
    **dict.fromkeys(("rewards", "rollout", "train"), 3),
    "stages": 4,
    **dict.fromkeys(("commands", "launch", "cli", "__main__"), 5),
}
HEAVY = {"torch", "transformers", "datasets", "accelerate", "peft", "numpy", "safetensors"}


def floor(module: str) -> int:
    parts = module.split(".")
    if parts[-1] in ("config", "__init__") or module == "rlhf_cli.stages.registry":
        return 0
    return FLOORS[parts[1]]


@cache
def imports(module: str) -> dict[str, bool]:
    """What a module imports, and whether at load (a function may import later to stay fast)."""
    found: dict[str, bool] = {}
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        for name in names(node):
            found[name] = found.get(name, False) or id(node) not in late
    return found


def names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        within = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if name in MODULES else str(node.module) for name in within]
    return []


def ours(module: str) -> list[str]:
    return [name for name in imports(module) if name in MODULES]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_its_own_floor_or_a_lower_one(module):
    above = [name for name in ours(module) if floor(name) > floor(module)]
    assert above == []


@pytest.mark.parametrize("module", [name for name in MODULES if floor(name) == 0])
def test_floor_0_imports_nothing_heavy(module):
    assert {name.partition(".")[0] for name in imports(module)} & HEAVY == set()


@pytest.mark.parametrize("module", [name for name in MODULES if ".evaluation." in name])
def test_evaluation_is_arithmetic_on_arrays(module):
    assert all(name.startswith("rlhf_cli.evaluation") for name in ours(module))
    assert {name.partition(".")[0] for name in imports(module)} & (HEAVY - {"numpy"}) == set()


def test_no_module_is_part_of_a_circle():
    graph = {module: [n for n in ours(module) if imports(module)[n]] for module in MODULES}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_packages_import_nothing():
    loaded = {name: imports(name) for name in MODULES if name.endswith("__init__")}
    assert {name: found for name, found in loaded.items() if found} == {}


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
