"""No tensor of all scored tokens times a large vocabulary is ever made, in any stage."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoTokenizer

from rlhf_cli import cli
from rlhf_cli.resources import shipped_model
from tests.helpers import tiny_llama

VOCABULARY = 65_536
WIDTH = 16
TOKENS = 1000
"""Scored in a step, at least, by the rows below."""

STAGES = {
    "pretrain": ["pretrain", "data=text.jsonl"],
    "sft": ["sft", "data=completions.jsonl"],
    "reward": ["reward", "data=pairs.jsonl"],
    "dpo": ["dpo", "data=pairs.jsonl"],
    "dpo, reference in every step": ["dpo", "data=pairs.jsonl", "model.reference=copy"],
    "bco": ["bco", "data=pairs.jsonl"],
    "ppo": [
        "ppo", "data=prompts.jsonl", "reward.function=judge.py:length", "template=never",
        "max_new_tokens=150", "sampling.min_new_tokens=150", "allow_truncated_sampling=true",
        "ppo_epochs=1",
    ],
}  # fmt: skip


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        found = (leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))
        self.elements = max([self.elements, *found])
        return out


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A narrow model with a large vocabulary, most of which its tokenizer never gives."""
    folder = tmp_path_factory.mktemp("wide")
    made = tiny_llama(vocab_size=VOCABULARY, hidden_size=WIDTH, max_position_embeddings=1024)
    made.save_pretrained(folder)
    AutoTokenizer.from_pretrained(shipped_model("tiny")).save_pretrained(folder)
    return folder


def write(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("stage", STAGES)
def test_logits_of_a_whole_batch_are_never_alive(stage, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("rain", "tea", "gold", "silk")
    long = [" ".join(f"{word}{i}" for i in range(90)) for word in words]
    pairs = [{"prompt": "Say it", "chosen": text, "rejected": text[::-1]} for text in long]
    write("pairs.jsonl", pairs)
    write("completions.jsonl", [{"prompt": "Say it", "completion": text} for text in long])
    write("text.jsonl", [{"text": text} for text in long])
    write("prompts.jsonl", [{"prompt": f"{i} Say it"} for i in range(8)])
    Path("judge.py").write_text("def length(prompts, responses): return [*map(len, responses)]")
    common = ["batch_size=8", "max_steps=1", "train.precision=fp32", "data.eval=none"]
    with Largest() as largest:
        assert cli.main([*STAGES[stage], f"model={model}", *common, "output_dir=run"]) == 0
    [line] = map(json.loads, Path("run/metrics.jsonl").read_text().splitlines())
    assert line["grad_norm"] > 0
    assert largest.elements >= VOCABULARY * WIDTH  # the embeddings were seen
    assert largest.elements < VOCABULARY * TOKENS / 10
