"""The recipe of sums: its judge, its data, and what GRPO reaches."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "arithmetic_grpo"
FILES = ("sft", "grpo", "test")


def load_judge():
    spec = importlib.util.spec_from_file_location("arithmetic_judge", RECIPE / "judge.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(name):
    return [
        json.loads(line)
        for line in (RECIPE / "data" / f"{name}.jsonl").read_text().split("\n")
        if line
    ]


@pytest.mark.parametrize(
    ("response", "points"), [("7", 1.0), ("8", 0.0), ("", 0.0), ("07", 0.0), ("7 7", 0.0)]
)
def test_only_the_sum_alone_earns_a_point(response, points):
    assert load_judge().score(prompts=["add 3 and 4: "], responses=[response]) == [points]


def test_the_judge_agrees_with_the_rows_to_imitate():
    for name in ("sft", "test"):
        prompts, answers = ([row[key] for row in rows(name)] for key in ("prompt", "completion"))
        assert set(load_judge().score(prompts=prompts, responses=answers)) == {1.0}


def test_no_prompt_is_in_two_files():
    prompts = [row["prompt"] for name in FILES for row in rows(name)]
    assert len(set(prompts)) == len(prompts)


def test_making_the_data_again_gives_the_same_bytes(tmp_path):
    subprocess.run([sys.executable, RECIPE / "make_data.py", tmp_path], check=True)
    for name in FILES:
        made, shipped = (folder / f"{name}.jsonl" for folder in (tmp_path, RECIPE / "data"))
        assert made.read_bytes() == shipped.read_bytes()


@pytest.mark.slow
def test_grpo_answers_more_prompts_rightly_than_sft(tmp_path):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", str(RECIPE / "run.sh"), str(tmp_path)],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "temperature-1.json").read_text())["results"]
    value = {(one["run"], one["metric"]): one for one in results}
    assert 0.3 < value["sft", "score"]["value"] < 0.6
    assert value["grpo", "score gain"]["low"] > 0
