"""The first steps of docs/start.md: the files, then the commands in order."""

import json
import re
import shlex
from pathlib import Path

import pytest

from rlhf_cli import cli
from tests.pages import DOCS

PAGE = (DOCS / "start.md").read_text()
STEPS = PAGE[PAGE.index("## Your own data") : PAGE.index("`rlhf sft --help`")]
STEP = ["max_steps=1", "batch_size=2"]
SHORT = {
    **dict.fromkeys(("pretrain", "sft", "reward", "dpo", "bco"), STEP),
    "ppo": [*STEP, "max_new_tokens=4"],
    "generate": ["max_new_tokens=4"],
    "evaluate": [],
}


@pytest.fixture(autouse=True)
def _files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fenced = re.findall(r"^```(?:jsonl|python) (\S+)\n(.*?)^```$", STEPS, re.MULTILINE | re.DOTALL)
    for name, text in fenced:
        Path(name).write_text(text)


def commands() -> list[list[str]]:
    """Commands of the quickstart, without the smoke run."""
    fenced = re.findall(r"^```([^\n]*)\n(.*?)^```$", STEPS, re.MULTILINE | re.DOTALL)
    lines = [line for language, text in fenced if not language for line in text.splitlines()]
    words = [shlex.split(line, comments=True)[1:] for line in lines]
    return [call for call in words if len(call) > 1 and "train=smoke" not in call]


def test_each_file_has_three_rows():
    names = sorted(path.name for path in Path().glob("*.jsonl"))
    assert names == ["answers.jsonl", "chats.jsonl", "labels.jsonl", "preferences.jsonl",
                     "prompts.jsonl", "texts.jsonl"]  # fmt: skip
    for name in names:
        assert len([json.loads(line) for line in Path(name).read_text().splitlines()]) == 3


def test_each_file_holds_one_kind_of_rows():
    """Each file is used only by stages that read its kind of rows."""
    given = {(call[0], word) for call in commands() for word in call if word.startswith("data=")}
    assert {name for stage, name in given if stage == "sft"} == {
        "data=chats.jsonl", "data=answers.jsonl"
    }  # fmt: skip
    assert {stage for stage, name in given if name == "data=preferences.jsonl"} == {"reward", "dpo"}


def test_the_quickstart_runs_in_order(capsys):
    """Each command runs one step, with the shipped model instead of the hub's."""
    for call in commands():
        words = ["model=tiny" if "/SmolLM2" in word else word for word in call]
        assert cli.main([*words, *SHORT[call[0]]]) == 0, (call, capsys.readouterr().err)
