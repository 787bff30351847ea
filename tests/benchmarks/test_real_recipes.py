from pathlib import Path

import pytest

from rlhf_cli.config.args import parse
from rlhf_cli.registry import COMMANDS
from rlhf_cli.resolve import resolve

REAL = Path(__file__).parents[2] / "benchmarks" / "real"
FILES = (
    "text_speeches.txt",
    "text_movie_reviews.jsonl",
    "preference_arguments_train.jsonl",
    "preference_helpful_train.jsonl",
    "binary_math_train.jsonl",
    "math_train.jsonl",
    "binary_coffee_train.jsonl",
    "chat_assistant_train.jsonl",
    "chat_assistant_test.jsonl",
    "chat_coffee_train.jsonl",
    "sft_commands_train.jsonl",
)


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "dpo", "bco"])
def test_the_recipes_on_real_data_compose(stage, tmp_path, monkeypatch):
    for name in FILES:
        (tmp_path / name).touch()
    monkeypatch.setenv("RLHF_DATA", str(tmp_path))
    words = [f"config={REAL / stage}.yaml"]
    if stage != "pretrain":
        words.append("model=tiny")
    if stage not in ("pretrain", "sft"):
        words.append(f"data={tmp_path / 'preference_helpful_train.jsonl'}")
    found = resolve(COMMANDS[stage], parse(COMMANDS[stage], words))
    assert found.config.data.max_length <= 512
