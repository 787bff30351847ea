"""The package as a wheel has it, run from another folder."""

import json
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rlhf_cli import resources
from rlhf_cli.tools import TOOLS
from tests.pages import (
    DOCS,
    ROOT,
    create_files,
    help_commands,
    page_commands,
    recipe_commands,
    shown_only,
)

RUN_ALL = """
import contextlib, io, json, sys
import rlhf_cli
from rlhf_cli import cli
assert rlhf_cli.__file__.startswith(sys.argv[1]), rlhf_cli.__file__
failed = []
for words in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(words)
    if code:
        failed.append([words, code, err.getvalue()])
json.dump(failed, sys.stdout)
"""
"""Runs commands, each a list of words on stdin, and prints those that fail."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of an unpacked wheel of the working tree."""
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="needs the extra `test`")
    folder = tmp_path_factory.mktemp("wheel")
    [path] = wheel.WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(path) as file:
        file.extractall(folder / "site")
    return folder / "site"


def python(installed, folder, *words, **kwargs):
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        **kwargs,
    )


def test_every_command_that_a_user_is_told_to_type_composes_in_another_folder(installed, tmp_path):
    create_files(tmp_path)
    typed = dict.fromkeys([*help_commands(), *recipe_commands(), *page_commands()])
    calls = [shlex.split(command, comments=True)[1:] for command in typed]
    calls = [call if call[0] in TOOLS else shown_only(call) for call in calls]
    calls += [["docs"], *(["docs", name] for name in resources.page_names()), ["recipes"]]
    run = python(installed, tmp_path, "-c", RUN_ALL, str(installed), input=json.dumps(calls))
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == []


@pytest.mark.parametrize("folder", ["configs", "recipes", "docs"])
def test_a_wheel_has_the_files_that_ship(installed, folder):
    shipped = {
        path.relative_to(ROOT)
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    there = {
        Path(folder) / p.relative_to(installed / "rlhf_cli" / folder)
        for p in (installed / "rlhf_cli" / folder).rglob("*")
        if p.is_file()
    }
    assert there == shipped


def test_a_page_is_printed_as_it_stands(installed, tmp_path):
    run = python(installed, tmp_path, "-m", "rlhf_cli", "docs", "data")
    assert run.stdout == (DOCS / "data.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "dpo", "ppo", "bco"])
def test_a_smoke_run_of_each_stage_in_another_folder(installed, tmp_path, stage):
    run = python(installed, tmp_path, "-m", "rlhf_cli", stage, "train=smoke", "output_dir=out")
    assert run.returncode == 0, run.stderr
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["status"] == "complete"
