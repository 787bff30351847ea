"""Responses to fixed prompts: they show the policy through time and change nothing."""

import json
from pathlib import Path

import numpy as np
import pytest

from rlhf_cli import cli
from rlhf_cli.report.glossary import find
from rlhf_cli.runs.run_files import FIXED_SAMPLES, REPORT, read_json_lines
from rlhf_cli.stages import fixed_samples
from rlhf_cli.train.metrics import read_metrics
from tests.helpers import last_of_each, tiny_llama, without_machine
from tests.stages.conftest import FAST
from tests.stages.test_stages import sft, stop_after

JUDGE = """
import random
import numpy as np

def score(prompts, responses, **columns):
    return [random.random() + np.random.rand() for _ in responses]
"""

CASES = {
    "pretrain": ["data.eval=60"],
    "sft": ["adapter=lora", "adapter.dropout=0.2"],
    "dpo": ["adapter=lora", "adapter.dropout=0.2"],
    "ppo": ["reward.function=judge.py:score", "max_new_tokens=6", "data.max_length=200"],
}


def train(stage, model, out, *words):
    argv = [f"model={model}", "data=tiny", f"output_dir={out}", "max_steps=4", *FAST]
    argv += ["train.eval_steps=2", "data.eval=8", *CASES.get(stage, []), *words]
    assert cli.main([stage, *last_of_each(*argv)]) == 0
    return Path(out)


def metrics_of(out):
    lines = without_machine(read_metrics(out / "metrics.jsonl"))
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def unexplained(out):
    """Metrics of a run that the glossary does not have."""
    names = {name for line in read_metrics(out / "metrics.jsonl") for name in line}
    return {name for name in names - {"step"} if find(name) is None}


def rows_of(out):
    return read_json_lines(out / FIXED_SAMPLES)


@pytest.mark.parametrize("stage", CASES)
def test_they_change_no_bit_of_a_run(stage, small_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("judge.py").write_text(JUDGE)
    without, with_them = (
        train(stage, small_model, tmp_path / str(n), f"log.sample_prompts={n}") for n in (0, 3)
    )
    assert metrics_of(without) == metrics_of(with_them)
    assert unexplained(with_them) == set()
    checkpoint = Path("checkpoints", "step-000004")
    for name in ("weights.safetensors", "optimizer.safetensors", "rng.safetensors"):
        last = checkpoint / name
        assert (without / last).read_bytes() == (with_them / last).read_bytes(), name
    assert not (without / FIXED_SAMPLES).exists()
    rows = rows_of(with_them)
    assert [row["step"] for row in rows] == [0, 0, 0, 2, 2, 2, 4, 4, 4]
    assert len({row["prompt"] for row in rows}) == 3
    assert all(("score" in row) == (stage == "ppo") for row in rows)
    assert "through time" in (with_them / REPORT).read_text(encoding="utf-8")


def test_a_reward_model_answers_nothing(small_model, tmp_path):
    out = train("reward", small_model, tmp_path / "run", "max_steps=2")
    assert not (out / FIXED_SAMPLES).exists()
    assert unexplained(out) == set()


def test_metrics_of_bco_are_explained(small_model, tmp_path):
    assert unexplained(train("bco", small_model, tmp_path / "run", "max_steps=2")) == set()


def test_a_resumed_run_neither_repeats_nor_loses_them(small_model, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    settings = ("train.save_steps=2", "train.eval_steps=1", "data.eval=8", f"model={small_model}")
    settings = ("max_steps=4", *settings)
    assert sft(whole, *settings) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert sft(broken, *settings) == 130
    assert {row["step"] for row in rows_of(broken)} == {0, 1, 2, 3}
    assert "interrupted" in (broken / REPORT).read_text(encoding="utf-8")
    assert sft(broken, *settings) == 0
    assert rows_of(broken) == rows_of(whole)


def test_a_policy_that_cannot_answer_is_told_once(small_model, tmp_path, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("no cache here")

    monkeypatch.setattr(fixed_samples, "generate", broken)
    words = ("max_steps=2", "train.eval_steps=1", f"model={small_model}", "data.eval=8")
    assert sft(tmp_path / "run", *words) == 0
    assert capsys.readouterr().err.count("log.sample_prompts: no responses (no cache here)") == 1
    assert not (tmp_path / "run" / FIXED_SAMPLES).exists()


class _Policy:
    def __init__(self, positions=256):
        self.model = tiny_llama(max_position_embeddings=positions)


class _Tokenizer:
    def decode(self, tokens, **kwargs):
        return " ".join(map(str, tokens))


def examples(*rows, first):
    """Examples of one row each, whose targets begin at `first`."""
    from rlhf_cli.data.examples import Examples

    lengths = [len(row) for row in rows]
    mask = [k >= start for row, start in zip(rows, first, strict=True) for k in range(len(row))]
    return Examples(
        np.concatenate(rows).astype(np.int32),
        np.array(mask),
        np.cumsum([0, *lengths]),
        np.arange(len(rows) + 1),
        ("rows.jsonl",),
        np.zeros((len(rows), 2), np.int64),
    )


def test_prompts_are_what_precedes_the_first_target(monkeypatch):
    monkeypatch.setattr(
        fixed_samples, "GREEDY", fixed_samples.SamplingConfig(temperature=0, max_new_tokens=250)
    )
    rows = [[5, 6, 7, 8], [5, 6, 9], [1, 2, 3, 4, 5, 6, 7, 8], list(range(60)), [4, 3, 2]]
    found = fixed_samples.prompts_of_examples(
        examples(*rows, first=[2, 2, 7, 1, 2]), _Tokenizer(), _Policy(), 9
    )
    # the second repeats the first, the third leaves no room, the fourth is text and does not fit
    assert [(one.index, one.token_ids) for one in found] == [(0, [5, 6]), (4, [4, 3])]


def test_of_text_the_beginning_of_a_row_is_the_prompt():
    rows = [list(range(60)), list(range(10)), list(range(30, 90))]
    found = fixed_samples.prompts_of_examples(
        examples(*rows, first=[1, 1, 1]), _Tokenizer(), _Policy(), 2
    )
    assert [one.token_ids for one in found] == [list(range(24)), list(range(30, 54))]


@pytest.mark.parametrize(("held_out", "keys"), [("tiny", {"score"}), ("none", set())])
def test_responses_to_held_out_prompts_are_scored(
    tmp_path, small_model, monkeypatch, held_out, keys
):
    monkeypatch.chdir(tmp_path)
    Path("judge.py").write_text(JUDGE)
    out = train("ppo", small_model, tmp_path / "run", "max_steps=1", f"data.eval={held_out}")
    [line, *_] = (out / FIXED_SAMPLES).read_text().splitlines()
    assert json.loads(line).keys() == {"step", "prompt", "response", "tokens"} | keys
