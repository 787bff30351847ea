"""The floors of the package: a module imports its own floor or a lower one, never in a circle."""

import ast
import importlib
import re
from graphlib import TopologicalSorter
from operator import attrgetter

import pytest

from tests import architecture
from tests.imports import FLOORS, MODULES, ROOT, floor, imports, own_imports, unit, unit_graph
from tests.pages import ROOT as REPOSITORY

HEAVY = {"torch", "transformers", "datasets", "accelerate", "peft", "numpy", "safetensors"}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_its_own_floor_or_a_lower_one(module):
    above = [name for name in own_imports(module) if floor(name) > floor(module)]
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
    assert {unit(name) for name in own_imports(module)} <= {"config", "configs", "resources"}
    calls = {"find_spec", "isdir", "isfile", "exists", "open", "listdir", "read_text", "stat"}
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    called = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    assert {getattr(func, "attr", getattr(func, "id", "")) for func in called} & calls == set()


@pytest.mark.parametrize("module", [name for name in MODULES if ".evaluation." in name])
def test_evaluation_is_arithmetic_on_arrays(module):
    assert all(name.startswith("rlhf_cli.evaluation") for name in own_imports(module))
    assert {name.partition(".")[0] for name in imports(module)} & (HEAVY - {"numpy"}) == set()


def test_no_module_is_part_of_a_circle():
    """Imports inside functions count too: they hide a circle and do not remove it."""
    graph = {module: own_imports(module) for module in MODULES}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_no_package_is_part_of_a_circle():
    TopologicalSorter(unit_graph()).prepare()  # raises CycleError


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
        ('torch.device("cpu")', {"context.py", "distributed/mesh.py"}),  # a model says where it is
    ],
)
def test_what_works_on_one_cpu_only_is_not_called(call, allowed):
    callers = {f.relative_to(ROOT).as_posix() for f in MODULES.values() if call in f.read_text()}
    assert callers <= allowed


def test_the_picture_is_drawn_from_these_imports():
    """`python -m tests.architecture > docs/architecture.svg` draws it again."""
    drawn = (REPOSITORY / "docs" / "architecture.svg").read_text(encoding="utf-8")
    assert drawn == architecture.picture() + "\n"


def test_the_picture_has_a_box_for_every_unit():
    assert architecture.UNITS.keys() == FLOORS.keys() == unit_graph().keys()
    purposes = [purpose for _, _, purpose in architecture.UNITS.values()]
    assert [words for words in purposes if len(words.split()) > 3] == []


def test_no_arrow_of_the_picture_points_up():
    ties = architecture.reduction(unit_graph())
    rows = [(architecture.row_of(start), architecture.row_of(end)) for start, end in ties]
    assert [tie for tie in rows if tie[0] > tie[1]] == []


@pytest.mark.parametrize(
    "step", [step for steps in architecture.WAYS.values() for *_, step in steps]
)
def test_each_step_of_the_picture_is_a_function_or_class(step):
    module, _, name = step.partition(":")
    assert callable(getattr(importlib.import_module(f"rlhf_cli.{module}"), name))


PAGES = ("docs/architecture.md", "CONTRIBUTING.md", "AGENTS.md", "SECURITY.md")


@pytest.mark.parametrize("page", PAGES)
def test_each_path_that_a_page_names_exists(page):
    """Files and folders in backticks; those of docs/architecture.md may begin below `rlhf_cli/`."""
    named = {path for path in quoted(page) if re.fullmatch(r"[\w./-]+(\.py|/)", path)}
    above = [REPOSITORY, ROOT] if page == "docs/architecture.md" else [REPOSITORY]
    missing = {path for path in named if not any((folder / path).exists() for folder in above)}
    assert missing <= {"__init__.py", "config.py"}, "names of files that many folders have"


def test_each_function_that_the_page_names_exists():
    named = [re.fullmatch(r"([a-z_/]+)\.py:([\w.]+)", words) for words in quoted(PAGES[0])]
    found = [(match[1].replace("/", "."), match[2]) for match in named if match]
    assert len(found) >= 15
    for module, name in found:
        attrgetter(name)(importlib.import_module(f"rlhf_cli.{module}"))


def quoted(page):
    """What stands in backticks on a page."""
    return re.findall(r"`([^`\n]+)`", (REPOSITORY / page).read_text(encoding="utf-8"))
