"""Commands, examples, tables and links of the pages, help texts and recipe headers."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from rlhf_cli import cli, resources
from rlhf_cli.errors import exit_codes
from rlhf_cli.tools import TOOLS
from tests.pages import (
    DOCS,
    PAGES,
    RECIPES,
    ROOT,
    create_files,
    fenced_blocks,
    help_commands,
    page_commands,
    recipe_commands,
    shown_only,
)


@pytest.fixture(autouse=True)
def _create_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    create_files(tmp_path)


@pytest.mark.parametrize(
    "command", dict.fromkeys([*page_commands(), *help_commands(), *recipe_commands()])
)
def test_each_command_composes(command, capsys):
    words = shlex.split(command, comments=True)[1:]
    words = words if words[0] in TOOLS else shown_only(words)
    assert cli.main(words) == 0, capsys.readouterr()


def test_the_pages_have_commands():
    assert len(page_commands()) >= 50
    assert len(help_commands()) >= 30
    assert len(recipe_commands()) >= 6


def test_texts_name_no_path_of_the_repository():
    """An installed package has no `docs/data.md` and no `recipes/tiny/judge.py`."""
    shipped = [*(ROOT / "rlhf_cli").rglob("*.py"), *RECIPES.rglob("*.*"), *DOCS.glob("*.md")]
    named = r"=recipes/|(?<![./(\[\w])docs/\w+\.md"
    found = {f"{path}: {match[0]}" for path in shipped for match in re.finditer(named, _text(path))}
    assert found == set()


def test_every_page_that_a_message_or_recipe_names_exists():
    texts = [*(ROOT / "rlhf_cli").rglob("*.py"), *RECIPES.rglob("*.*")]
    named = {
        name for path in texts for name in re.findall(r"[Ss]ee `?rlhf docs ([a-z_]+)", _text(path))
    }
    assert "data" in named
    assert named <= {*resources.page_names()}


def _text(path):
    return path.read_text() if path.suffix in (".py", ".yaml", ".sh", ".md") else ""


def test_the_recipe_of_several_sources_composes(capsys):
    Path("mixture.yaml").write_text(fenced_blocks(ROOT / "docs" / "data.md", "yaml")[0])
    assert cli.main(["sft", "config=mixture.yaml", "--cfg"]) == 0, capsys.readouterr()


@pytest.mark.parametrize(
    ("kind", "rows"),
    re.findall(
        r"^```jsonl (\w+)\n(.*?)^```$", (DOCS / "data.md").read_text(), re.MULTILINE | re.DOTALL
    ),
)
def test_the_rows_of_the_page_are_of_their_kind(tmp_path, kind, rows):
    from rlhf_cli.data.config import DataConfig
    from rlhf_cli.data.records.reader import RecordReader
    from rlhf_cli.data.records.types import KINDS
    from rlhf_cli.data.report import DataReport
    from rlhf_cli.data.sources.files import read_rows

    path = tmp_path / "page.jsonl"
    path.write_text(rows)
    report = DataReport()
    reader = RecordReader(DataConfig(), "test", tuple(k.record for k in KINDS), report)
    assert len(list(reader.read(read_rows([path])))) == len(rows.splitlines())
    assert (report.kind, report.refused) == (kind, {})


@pytest.mark.parametrize("page", [DOCS / "start.md", DOCS / "configuration.md"])
def test_a_page_shows_the_errors_that_its_example_gives(page, capsys):
    [shown] = [
        block for block in fenced_blocks(page) if "\nerror: " in block and block[:6] == "$ rlhf"
    ]
    command, _, errors = shown.partition("\n")
    assert cli.main(shlex.split(command)[2:]) == 2
    assert capsys.readouterr().err == errors


def test_the_provenance_of_the_page_is_what_the_command_prints(capsys):
    [shown] = [
        block for block in fenced_blocks(DOCS / "configuration.md") if "--provenance" in block
    ]
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


def test_the_index_lists_every_page():
    listed = set(re.findall(r"\]\((\w+)\.md\)", (DOCS / "index.md").read_text()))
    assert listed == {*resources.page_names()} - {"index"}


def test_the_site_has_every_page():
    """`make docs` builds it with zensical, which reads mkdocs.yml."""
    found = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    pages = [
        page
        for entry in found
        for page in ([entry] if isinstance(entry, str) else next(iter(entry.values())))
    ]
    assert sorted(pages) == [f"{name}.md" for name in resources.page_names()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_link_has_a_target(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text)):
        name, _, heading = target.partition("#")
        if "://" not in target:
            linked = page.parent / name if name else page
            assert linked.is_file(), target
            assert not heading or heading in _anchors(linked), target


def _anchors(page):
    """The names of a page's headings in links, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
