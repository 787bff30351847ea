"""The recipe of movie reviews: its parts, and all of it on a cut of the data."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "sentiment_ppo"
ROWS = {
    "text_movie_reviews": 10,
    "sentiment_train": 200,
    "sentiment_test": 20,
    "prompts_movie": 804,
}
SHORT = """#!/usr/bin/env bash
case $1 in pretrain | reward | ppo) set -- "$@" max_steps=2 ;; esac
exec {python} -m rlhf_cli "$@"
"""
"""`rlhf` with two steps of whatever is trained."""


def load(name):
    spec = importlib.util.spec_from_file_location(f"sentiment_{name}", RECIPE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def chain(out, **environment):
    return subprocess.run(
        ["bash", str(RECIPE / "run.sh"), str(out)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_the_data_one_line_says_so(tmp_path):
    run = chain(tmp_path, RLHF_DATA="")
    assert run.returncode != 0
    [line] = run.stderr.splitlines()
    assert line.endswith("set RLHF_DATA to the folder of public data (see rlhf docs data)")


def test_sentences_are_the_lines_of_reviews_that_have_four_words(tmp_path):
    reviews, sentences = tmp_path / "reviews.jsonl", tmp_path / "sentences.jsonl"
    reviews.write_text(json.dumps({"text": "cool .\nit was a film .\nthe end"}) + "\n")
    load("sentences").main(reviews, sentences)
    assert [json.loads(line) for line in sentences.read_text().splitlines()] == [
        {"text": "it was a film ."}
    ]


def test_variety_is_the_share_of_different_runs_of_three_words():
    variety = load("table").variety
    assert variety(["a b c d", "x y z"]) == 1
    assert variety(["a b c"] * 4) == 0.25
    assert variety(["a b"]) == 0


def test_word_counts_tell_praise_from_blame():
    sentences = [{"text": "good fun", "label": 1}, {"text": "bad mess", "label": 0}] * 4
    good, bad = load("table").counted(sentences, ["such good fun", "a bad mess"])
    assert good > 0.5 > bad


@pytest.mark.slow
def test_the_chain_runs_on_a_cut_of_the_data_and_prints_its_table(tmp_path, real_data):
    for name, count in ROWS.items():
        lines = (real_data / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines[:count]))
    short = tmp_path / "bin" / "rlhf"
    short.parent.mkdir()
    short.write_text(SHORT.format(python=sys.executable))
    short.chmod(0o755)
    path = f"{short.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    run = chain(tmp_path / "runs", RLHF_DATA=str(tmp_path), PATH=path)
    assert run.returncode == 0, run.stderr
    table = {line.split()[0]: line.split() for line in run.stdout.splitlines() if line.strip()}
    for name in ("pretrain", "ppo-0"):
        assert 0 < float(table[name][1]) < 1
    assert float(table["pretrain"][7]) == 0  # its KL from itself
    assert run.stdout.count("...") >= 4
