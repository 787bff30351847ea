"""Completion in a shell: which words follow which, and that no slow module is imported."""

import os
import subprocess
import sys

import pytest

from rlhf_cli import cli
from rlhf_cli.completion import SHELLS, find_candidates
from rlhf_cli.registry import COMMANDS
from rlhf_cli.resources import recipe_names
from rlhf_cli.tools import TOOLS


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_word_is_a_command_or_tool():
    assert {*find_candidates([""])} == {*COMMANDS, *TOOLS}
    assert {*find_candidates(["d"])} == {name for name in (*COMMANDS, *TOOLS) if name[0] == "d"}


def test_keys_come_with_their_meaning():
    found = find_candidates(["dpo", "sync_"])
    assert [*found] == ["sync_steps=", "sync_alpha="]
    assert "TR-DPO" in found["sync_alpha="]
    assert "train.optimizer=" in find_candidates(["dpo", "train."])


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("train.gradient_checkpointing=", {"true", "false"}),
        ("train.schedule=", {"cosine", "linear", "constant", "wsd"}),
        ("train.schedule=c", {"cosine", "constant"}),
        ("adapter=", {"dora", "lora", "none", "rslora"}),
        ("nonsense=", set()),
    ],
)
def test_values_of_a_key(word, values):
    assert {found.partition("=")[2] for found in find_candidates(["sft", word])} == values


def test_recipes_and_files(folder):
    (folder / "mine.yaml").touch()
    found = [*find_candidates(["sft", "config="])]
    assert found == [f"config={name}" for name in (*recipe_names(), "mine.yaml")]
    assert [*find_candidates(["recipes", "show", "tiny/s"])] == ["tiny/sft"]


def test_runs_are_offered_as_models(folder):
    (folder / "runs" / "sft").mkdir(parents=True)
    (folder / "runs" / "sft" / "manifest.json").touch()
    assert "model=runs/sft" in find_candidates(["dpo", "model="])
    assert "data=runs/sft" not in find_candidates(["dpo", "data="])
    assert [*find_candidates(["dpo", "data=ru"])] == ["data=runs/"]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_code_of_a_shell_names_the_program(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    assert "rlhf" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["csh"], ["bash", "zsh"]])
def test_other_shells_are_refused(words, capsys):
    assert cli.main(["completion", *words]) == 2
    assert "need one of bash, zsh, fish" in capsys.readouterr().err


def complete(line: str) -> list[str]:
    """Words that bash gets for a line, from a process that must not import what is slow."""
    code = (
        "import sys, atexit\n"
        "from rlhf_cli.__main__ import entry\n"
        "for name in ('torch', 'transformers', 'omegaconf', 'rlhf_cli.registry'):\n"
        "    sys.modules[name] = None\n"
        "entry()"
    )
    variables = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": "words",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><=;|&(:",
        "IFS": "\v",
    }
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **variables}, check=True, timeout=60
    )
    with open("words", encoding="utf-8") as file:
        return file.read().split("\v")


def test_bash_gets_what_follows_the_equals_sign():
    assert complete("rlhf dpo f_divergence=") == ["reverse_kl", "forward_kl", "js", "alpha"]


def test_a_line_in_the_middle_is_completed_without_slow_modules():
    assert complete("rlhf dpo beta=0.1 loss_ty") == ["loss_type="]
    assert complete("rlhf ev") == ["evaluate"]
