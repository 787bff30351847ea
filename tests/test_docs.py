"""What the README, the pages and the recipes' headers tell users to type."""

import re
import shlex
from pathlib import Path

import pytest

from rlhf_cli import cli, resources
from rlhf_cli.errors import exit_codes
from rlhf_cli.stages.registry import TOOLS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *(
        DOCS / f"{name}.md"
        for name in (
            "adapters",
            "configuration",
            "data",
            "evaluation",
            "generation",
            "judgments",
            "ppo",
            "processes",
            "recipes",
        )
    ),
]
FILES = (
    "chats.jsonl",
    "pairs.jsonl",
    "held_out.jsonl",
    "rows.jsonl",
    "table.csv",
    "labels.jsonl",
    "prompts.jsonl",
    "best.jsonl",
    "ranked.jsonl",
)
FOLDERS = (
    "folder", "texts", "runs/base", "runs/domain", "runs/sft", "runs/qsft", "runs/dpo",
    "runs/tiny/pretrain", "runs/tiny/sft", "runs/reward", "runs/arithmetic_grpo/sft",
)  # fmt: skip


def blocks(page: Path, language: str = "") -> list[str]:
    fenced = re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [text for name, text in fenced if name == language]


def typed() -> list[str]:
    """Commands that users are told to type, but the one that shows its errors."""
    lines = [line for page in PAGES for block in blocks(page) for line in block.splitlines()]
    recipes = sorted((ROOT / "recipes").rglob("*.yaml"))
    headers = [line for recipe in recipes for line in recipe.read_text().splitlines()]
    lines += [line.removeprefix("#").strip() for line in headers if line.startswith("#   rlhf")]
    return [line for line in lines if line.startswith("rlhf ")]


@pytest.fixture(autouse=True)
def _paths_that_the_pages_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in FOLDERS:
        Path(name).mkdir(parents=True)
    for name in FILES:
        Path(name).touch()
    Path("judge.py").write_text("def score(prompts, responses, **columns): ...\n")
    Path("runs/sft/config.yaml").write_text("stage: sft\ndata: {path: tiny}\n")
    Path("runs/reward/artifact.json").write_text('{"kind": "reward_model"}')
    Path("chats.yaml").write_text(blocks(ROOT / "README.md", "yaml")[0])
    Path("sft.yaml").write_text(blocks(ROOT / "docs" / "configuration.md", "yaml")[0])
    Path("compared.jsonl").write_text(blocks(DOCS / "data.md", "jsonl")[0])


@pytest.mark.parametrize("command", typed())
def test_a_command_of_the_pages_composes(command, capsys):
    words = shlex.split(command, comments=True)[1:]
    look = [] if words[0] in TOOLS else ["--cfg"]
    assert cli.main([*words, *look]) == 0, capsys.readouterr()


def test_the_pages_hold_commands():
    assert len(typed()) >= 8


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


def test_the_readme_shows_the_errors_that_its_example_gives(capsys):
    [shown] = [block for block in blocks(ROOT / "README.md") if block.startswith("$ rlhf")]
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
