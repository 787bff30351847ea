"""Recipes and command lines that were written for an older version."""

from pathlib import Path

import pytest

from rlhf_cli import cli
from rlhf_cli.config.renamed import RENAMED, renamed
from rlhf_cli.config.schema import groups, knobs
from rlhf_cli.stages.registry import COMMANDS

TINY = ("model=tiny", "data=tiny")


@pytest.fixture(autouse=True)
def _old_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {
        "train.steps": ("train.max_steps", "0.3"),
        "lora": ("adapter", "0.4"),
        "data.fields": ("data.columns", "0.5"),
    }
    for old, new in names.items():
        monkeypatch.setitem(RENAMED, old, new)


REAL = dict(RENAMED)


def test_new_names_are_keys_and_old_names_are_not():
    known = {key for c in COMMANDS.values() for key in (*knobs(c.config), *groups(c.config))}
    assert {new for new, _ in REAL.values()} <= known
    assert not REAL.keys() & known


def told(capsys, *words: str) -> list[str]:
    assert cli.main([*words, "--cfg"]) == 2
    return [line.removeprefix("error: ") for line in capsys.readouterr().err.splitlines()]


def test_an_old_key_of_a_recipe_is_told_with_its_line(capsys):
    Path("sft.yaml").write_text("stage: sft\nmodel: tiny\ntrain:\n  steps: 5\nlora: {rank: 4}\n")
    assert told(capsys, "sft", "config=sft.yaml", "data=tiny") == [
        "lora.rank: renamed to adapter.rank in 0.4. Try adapter.rank=4  (sft.yaml:5)",
        "train.steps: renamed to train.max_steps in 0.3. Try train.max_steps=5  (sft.yaml:4)",
    ]


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("train.steps=5", "train.steps: renamed to train.max_steps in 0.3. Try train.max_steps=5"),
        ("lora=dora", "lora: renamed to adapter in 0.4. Try adapter=dora"),
        ("data.fields.prompt=q", "data.fields.prompt: renamed to data.columns.prompt in 0.5. "
         "Try data.columns.prompt=q"),
    ],
)  # fmt: skip
def test_an_old_key_of_the_command_line_is_told(word, line, capsys):
    assert told(capsys, "sft", *TINY, word) == [f"{line}  (command line)"]


def test_an_old_key_of_another_command_is_told_by_its_name_of_today(capsys):
    assert told(capsys, "generate", "tiny", "prompt=x", "train.steps=5") == [
        "train.max_steps: a key of pretrain, sft, reward, dpo, ppo, bco, not of generate. "
        "See rlhf generate --help  (command line)"
    ]


def test_a_key_that_only_begins_alike_is_not_an_old_one():
    assert renamed("train.steps") == ("train.max_steps", "0.3")
    assert renamed("train.stepsize") is None
    assert renamed("loras.rank") is None
    assert renamed("") is None
