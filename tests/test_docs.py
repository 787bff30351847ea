"""What the README, the pages and the recipes' headers tell users to type."""

import re
import shlex
from pathlib import Path

import pytest

from rlhf_cli import cli, resources
from rlhf_cli.errors import exit_codes
from rlhf_cli.registry import TOOLS
from tests.pages import (
    DOCS,
    RECIPES,
    ROOT,
    blocks,
    in_recipes,
    lay_out,
    on_help_pages,
    on_pages,
)


@pytest.fixture(autouse=True)
def _paths_that_the_pages_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path)


@pytest.mark.parametrize("command", dict.fromkeys([*on_pages(), *on_help_pages(), *in_recipes()]))
def test_a_command_of_the_pages_composes(command, capsys):
    words = shlex.split(command, comments=True)[1:]
    look = [] if words[0] in TOOLS else ["--cfg"]
    assert cli.main([*words, *look]) == 0, capsys.readouterr()


def test_the_pages_hold_commands():
    assert len(on_pages()) >= 50
    assert len(on_help_pages()) >= 30
    assert len(in_recipes()) >= 6


def test_what_a_user_reads_names_nothing_that_only_the_repository_has():
    """An installed package has neither `docs/data.md` nor `recipes/tiny/judge.py`."""
    shipped = [*(ROOT / "rlhf_cli").rglob("*.py"), *RECIPES.rglob("*.*"), *DOCS.glob("*.md")]
    named = r"=recipes/|(?<![./(\[\w])docs/\w+\.md"
    found = {f"{path}: {match[0]}" for path in shipped for match in re.finditer(named, _text(path))}
    assert found == set()


def test_every_page_that_a_message_or_a_recipe_names_is_there():
    texts = [*(ROOT / "rlhf_cli").rglob("*.py"), *RECIPES.rglob("*.*")]
    named = {
        name for path in texts for name in re.findall(r"[Ss]ee `?rlhf docs ([a-z]+)", _text(path))
    }
    assert "data" in named
    assert named <= {*resources.pages()}


def _text(path):
    return path.read_text() if path.suffix in (".py", ".yaml", ".sh", ".md") else ""


def test_the_recipe_of_several_sources_composes(capsys):
    Path("mixture.yaml").write_text(blocks(ROOT / "docs" / "data.md", "yaml")[0])
    assert cli.main(["sft", "config=mixture.yaml", "--cfg"]) == 0, capsys.readouterr()


@pytest.mark.parametrize(
    ("kind", "rows"),
    re.findall(
        r"^```jsonl (\w+)\n(.*?)^```$", (DOCS / "data.md").read_text(), re.MULTILINE | re.DOTALL
    ),
)
def test_the_rows_of_the_page_are_of_their_kind(tmp_path, kind, rows):
    from rlhf_cli.data.config import DataConfig
    from rlhf_cli.data.reading.files import read_rows
    from rlhf_cli.data.records.reader import RecordReader
    from rlhf_cli.data.records.record import KINDS
    from rlhf_cli.data.report import DataReport

    path = tmp_path / "page.jsonl"
    path.write_text(rows)
    report = DataReport()
    reader = RecordReader(DataConfig(), "test", tuple(k.record for k in KINDS), report)
    assert len(list(reader.read(read_rows([path])))) == len(rows.splitlines())
    assert (report.kind, report.refused) == (kind, {})


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "configuration.md"])
def test_a_page_shows_the_errors_that_its_example_gives(page, capsys):
    [shown] = [block for block in blocks(page) if "\nerror: " in block and block[:6] == "$ rlhf"]
    command, _, errors = shown.partition("\n")
    assert cli.main(shlex.split(command)[2:]) == 2
    assert capsys.readouterr().err == errors


def test_the_page_shows_where_the_values_of_its_recipe_come_from(capsys):
    [shown] = [block for block in blocks(DOCS / "configuration.md") if "--provenance" in block]
    command, *lines = shown.splitlines()
    assert cli.main(shlex.split(command)[2:]) == 0
    given = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert [given[line.split()[0]] for line in lines] == [line.split() for line in lines]


def test_the_table_of_exit_codes():
    rows = re.findall(
        r"^\| (\d+) \| (.+) \|$", (DOCS / "configuration.md").read_text(), re.MULTILINE
    )
    assert {int(code): meaning for code, meaning in rows} == exit_codes()


def test_the_shipped_model_is_what_the_pages_say():
    import json

    shape = json.loads((resources.shipped_model() / "config.json").read_text())
    assert shape["num_hidden_layers"] == 4
    assert "four layers" in (ROOT / "configs" / "model" / "tiny.yaml").read_text()
