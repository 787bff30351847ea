"""Nothing that a user types or writes into a recipe gives a traceback."""

import io
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_cli import cli
from rlhf_cli.config.args import parse
from rlhf_cli.config.other_trainers import OTHER_NAMES
from rlhf_cli.config.schema import ALIASES, groups, options
from rlhf_cli.errors import RlhfError
from rlhf_cli.registry import COMMANDS
from rlhf_cli.resolve import resolve

KEYS = sorted(
    {key for command in COMMANDS.values() for key in options(command.config)}
    | {group for command in COMMANDS.values() for group in groups(command.config)}
    | {*ALIASES, *OTHER_NAMES, "x", "x.y", "stage", "defaults", "train.lr.x", "data.columns.a"}
)
junk = st.text(st.characters(exclude_characters="\0"), max_size=12)
grammar = st.text("[]{}(),:='\"$\\~.1e-#% aN", max_size=12)
numbers = st.integers() | st.floats()
plain = st.sampled_from(
    ["tiny", "smoke", "auto", "none", "true", "0.1", "1e-4", "1,2", "choice(1,2)", "range(3)",
     "[a,b]", "{a: 1}", "${seed}", "???", "null", "", "interval(0,1)", "'a,b'", "sort(2,1)"]
)  # fmt: skip
texts = st.one_of(plain, grammar, junk, numbers.map(str))
words = st.one_of(
    junk,
    st.builds(
        "{}{}={}".format, st.sampled_from(["", "+", "++", "~", "--"]), st.sampled_from(KEYS), texts
    ),
    st.builds("--{}".format, st.sampled_from(KEYS)),
    st.sampled_from(["-m", "--provenance", "hydra/sweeper=x", "config=r.yaml", "config=tiny/sft"]),
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=5,
)
recipes = st.one_of(
    st.dictionaries(st.sampled_from(KEYS), values, max_size=4).map(
        lambda tree: yaml.safe_dump(tree, allow_unicode=True)
    ),
    st.lists(st.builds("{}: {}".format, st.sampled_from(KEYS), texts), max_size=4).map("\n".join),
    junk,
)
commands = st.sampled_from(sorted(COMMANDS))


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def check_words(name: str, argv: list[str]) -> None:
    Path("r.yaml").write_text("seed: 1\n")
    told = io.StringIO()
    with redirect_stderr(told), redirect_stdout(io.StringIO()):
        code = cli.main([name, "model=tiny", *argv, "--cfg"])
    assert code in (0, 2, 3), told.getvalue()
    assert "Traceback" not in told.getvalue()


def check_recipe(name: str, text: str) -> None:
    Path("r.yaml").write_text(text, encoding="utf-8", errors="replace")
    command = COMMANDS[name]
    with suppress(RlhfError):
        resolve(command, parse(command, ["config=r.yaml"]))


def run(cases: int, check: Callable[..., None], **strategies: st.SearchStrategy) -> None:
    many = settings(max_examples=cases, deadline=None, suppress_health_check=list(HealthCheck))
    many(given(**strategies)(check))()


def test_words():
    run(60, check_words, name=commands, argv=st.lists(words, max_size=4))


def test_recipes():
    run(100, check_recipe, name=commands, text=recipes)


@pytest.mark.slow
def test_ten_thousand():
    run(4_000, check_words, name=commands, argv=st.lists(words, max_size=4))
    run(6_000, check_recipe, name=commands, text=recipes)
