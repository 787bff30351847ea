"""Prompts and rewards that the tests of PPO use."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli import cli
from rlhf_cli.resources import shipped_model
from rlhf_cli.train.metrics import read_metrics
from tests.helpers import last_of_each, without_machine
from tests.rollout.server.stub import Stub, model_writer, serving

WORDS = ("tea", "rain", "gold", "jazz", "snow", "iron", "silk", "fog")
JUDGE = """
def letters(prompts, responses, wanted, **columns):
    return [text.count(letter) / 4 for text, letter in zip(responses, wanted)]

def length(prompts, responses, **columns):
    return [float(len(text)) for text in responses]

def some(prompts, responses, **columns):
    return [float(i % 4 == 0) for i in range(len(responses))]

def equal(prompts, responses, **columns):
    return [1.0] * len(responses)

def huge(prompts, responses, **columns):
    return [1e6 * len(text) for text in responses]
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
def ppo(files: Path) -> Callable[..., list[dict[str, Any]]]:
    """Runs PPO on a random model and returns the lines of `metrics.jsonl`."""

    def run(*words: str, out: str = "run") -> list[dict[str, Any]]:
        assert cli.main(words_of(*words, out=out)) == 0
        return read_metrics(files / out / "metrics.jsonl")

    return run


def words_of(*words: str, out: str = "run") -> list[str]:
    """Arguments of a small run of PPO; later ones override earlier ones."""
    common = [
        "ppo", "model=tiny", "data=prompts.jsonl", "data.eval=none", "template=never",
        "reward.function=judge.py:letters", "max_new_tokens=8", "train.precision=fp32", "lr=1e-3",
        "batch_size=4", "max_steps=3", "ppo_epochs=2", "minibatches=2", f"output_dir={out}",
    ]  # fmt: skip
    return last_of_each(*common, *words)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """Lines of `metrics.jsonl` without what takes time."""
    return [
        {name: value for name, value in line.items() if not name.startswith("time/")}
        for line in without_machine(read_metrics(folder / "metrics.jsonl"))
    ]


@pytest.fixture(scope="session")
def shipped() -> tuple[Any, Any]:
    """The tokenizer of the embedded model, and a model of its shape with other weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(shipped_model())).eval()
    return AutoTokenizer.from_pretrained(shipped_model()), model


@pytest.fixture
def stub(shipped: tuple[Any, Any]) -> Iterator[Stub]:
    """A server in the shape of the embedded model, which generates by what is handed over."""
    tokenizer, model = shipped
    plain = Stub(
        rows=len(tokenizer),
        context=512,
        tokenize=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        write=model_writer(model, tokenizer),
    )
    with serving(plain) as served:
        yield served
