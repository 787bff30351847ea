"""`rlhf env`: what it tells, and that it tells it of a broken installation too."""

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from rlhf_cli import cli
from rlhf_cli.commands import env

ROOT = Path(__file__).parents[2]


def facts(capsys) -> dict:
    assert cli.main(["env", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_versions_devices_folders_and_switches(capsys, monkeypatch):
    monkeypatch.setenv("RLHF_CACHE", "/somewhere/cache")
    found = facts(capsys)
    assert found["versions"]["torch"] == torch.__version__
    assert found["computing"]["threads"] == torch.get_num_threads()
    assert found["computing"]["devices"][-1]["memory_gib"] > 0
    assert found["folders"]["cache"] == "/somewhere/cache"
    assert found["switches"]["HF_HUB_OFFLINE"] == "1"  # set for all tests


def test_the_lines_tell_the_same(capsys):
    assert cli.main(["env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = dict(re.split(r"  +", line, maxsplit=1) for line in lines)
    assert found["torch"] == torch.__version__
    assert {"device", "threads", "bf16", "cache", "hub", "switches"} <= {*found}


def test_a_missing_package_names_the_extra_that_installs_it(monkeypatch, capsys):
    monkeypatch.setattr(env, "_version", lambda package: None)
    cli.main(["env"])
    text = capsys.readouterr().out
    advice = re.escape('not installed; pip install "rlhf-cli[quant]"')
    assert re.search(f"^bitsandbytes +{advice}$", text, re.MULTILINE)
    assert re.search(r"^triton +not installed; comes with torch for CUDA$", text, re.MULTILINE)


def test_the_extras_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {
        re.split(r"[<>=\[]", requirement)[0]: extra
        for extra, requirements in project["optional-dependencies"].items()
        for requirement in requirements
        if extra != "test"
    }
    assert extras == env.EXTRAS


def test_a_torch_that_cannot_be_imported_is_told(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert cli.main(["env"]) == 0
    assert re.search(r"\ntorch +cannot be imported: .*torch", capsys.readouterr().out)


def test_the_commit_is_told_only_in_a_checkout(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(env, "PACKAGE", tmp_path / "rlhf_cli")
    assert facts(capsys)["git_commit"] == ""


@pytest.mark.parametrize("word", ["x", "--jsn"])
def test_another_word_is_one_line(word, capsys):
    assert cli.main(["env", word]) == 2
    assert capsys.readouterr().err == (
        f"error: env: got {word}; need nothing or --json. Try rlhf env --json\n"
    )


def test_each_name_keeps_its_distance_from_what_is_said(capsys):
    """`hydra-joblib-launcher` is longer than most."""
    cli.main(["env"])
    lines = capsys.readouterr().out.splitlines()
    said = [line.index(re.split(r"  +", line, maxsplit=1)[1]) for line in lines]
    assert len({*said}) == 1
