"""Prompts and a reward that the tests of online DPO use."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli import cli
from rlhf_cli.train.metrics import read_metrics
from tests.helpers import last_of_each

WORDS = ("tea", "rain", "gold", "jazz", "snow", "iron", "silk", "fog")
JUDGE = """
def letters(prompts, responses, wanted, **columns):
    return [text.count(letter) / 4 for text, letter in zip(responses, wanted)]

def equal(prompts, responses, **columns):
    return [1.0] * len(responses)

def first(prompts, responses, **columns):
    return [float("tea" in prompt) * len(text) for prompt, text in zip(prompts, responses)]
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, with `prompts.jsonl` and `judge.py`."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Say {word} {'again ' * i}", "wanted": "e"} for i, word in enumerate(WORDS)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("judge.py").write_text(JUDGE)
    return tmp_path


@pytest.fixture
def online(files: Path) -> Callable[..., list[dict[str, Any]]]:
    """Runs online DPO on a random model and returns the lines of `metrics.jsonl`."""

    def run(*words: str, out: str = "run") -> list[dict[str, Any]]:
        assert cli.main(words_of(*words, out=out)) == 0
        return read_metrics(files / out / "metrics.jsonl")

    return run


def words_of(*words: str, out: str = "run") -> list[str]:
    """Arguments of a small run of online DPO; later ones override earlier ones."""
    common = [
        "dpo", "online=true", "model=tiny", "data=prompts.jsonl", "data.eval=none",
        "template=never", "reward.function=judge.py:letters", "max_new_tokens=8",
        "train.precision=fp32", "lr=1e-3", "batch_size=4", "max_steps=3", f"output_dir={out}",
    ]  # fmt: skip
    return last_of_each(*common, *words)
