"""Rows, a teacher and a smaller student that the tests of distillation use."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from rlhf_cli import cli
from rlhf_cli.resources import shipped_model
from rlhf_cli.train.metrics import read_metrics
from tests.helpers import last_of_each, tiny_llama

WORDS = ("tea", "rain", "gold", "jazz", "snow", "iron", "silk", "fog")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random models of one vocabulary: `teacher`, `student`, `other`."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = AutoTokenizer.from_pretrained(shipped_model("tiny"))
    rows = len(tokenizer)
    tiny_llama(1, vocab_size=rows).save_pretrained(folder / "teacher")
    tiny_llama(2, vocab_size=rows, hidden_size=16).save_pretrained(folder / "student")
    tiny_llama(3, vocab_size=rows + 1).save_pretrained(folder / "other")
    for name in ("teacher", "student"):
        tokenizer.save_pretrained(folder / name)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder / "other")
    return folder


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, with `prompts.jsonl` and `pairs.jsonl`."""
    monkeypatch.chdir(tmp_path)
    prompts = [{"prompt": f"Say {word} {'again ' * i}"} for i, word in enumerate(WORDS)]
    pairs = [{**row, "completion": f"{word}!"} for row, word in zip(prompts, WORDS, strict=True)]
    for name, rows in (("prompts", prompts), ("pairs", pairs)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def words_of(models: Path, *words: str, out: str = "run") -> list[str]:
    """Arguments of a small run; later ones override earlier ones."""
    common = [
        "distill", f"model={models}/student", f"teacher={models}/teacher", "data=pairs.jsonl",
        "data.eval=none", "template=never", "max_new_tokens=8", "train.precision=fp32", "lr=1e-2",
        "batch_size=4", "max_steps=3", "log.sample_prompts=0", f"output_dir={out}",
    ]  # fmt: skip
    found = last_of_each(*common, *words)
    rows_only = "on_policy_fraction=0" in found
    return [word for word in found if not (rows_only and word.startswith("max_new_tokens"))]


@pytest.fixture
def distill(files: Path, models: Path) -> Callable[..., list[dict[str, Any]]]:
    """Runs distillation and returns the lines of `metrics.jsonl`."""

    def run(*words: str, out: str = "run") -> list[dict[str, Any]]:
        assert cli.main(words_of(models, *words, out=out)) == 0
        return read_metrics(files / out / "metrics.jsonl")

    return run
