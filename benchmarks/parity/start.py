"""What both sides start from: a small model, and rows that both tokenize alike."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import data_folder
from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.dataset import load_examples
from rlhf_cli.models.base_model import BaseOptions, build_random_model, load_base_model
from rlhf_cli.models.checks import NEW_REWARD_HEAD
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.runs.run_files import read_json_lines

LONGEST = 512
"""Characters of a prompt and a response, so that 20 steps take seconds."""


SMALL = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "initializer_range": 0.1,  # with less, losses hardly move in 20 steps
}


def small_models(folder: Path) -> tuple[Path, Path]:
    """A small Llama with random weights, and a reward model on the same layers."""
    tokenizer = load_tokenizer(ModelConfig(path="tiny"))
    language, reward = folder / "language", folder / "reward"
    build_random_model(ModelConfig(architecture=SMALL), tokenizer, seed=0).save_pretrained(language)
    options = BaseOptions(kind="reward_model", allowed=NEW_REWARD_HEAD)
    start = ModelConfig(path=str(language))
    load_base_model(start, str(language), tokenizer, options).save_pretrained(reward)
    for place in (language, reward):
        tokenizer.save_pretrained(place)
    return language, reward


def write_pairs(file: Path, tokenizer: Any, count: int, *, margin: bool) -> Path:
    """Pairs of real arguments, with or without the margins between them."""
    names = ("prompt", "chosen", "rejected", *(["margin"] if margin else []))
    rows = _rows("preference_arguments_train.jsonl")
    return _write(file, tokenizer, names, rows, count)


def write_labelled(file: Path, tokenizer: Any, count: int) -> Path:
    """Real answers to word problems, right and wrong ones, both in every few rows."""
    rows = _rows("binary_math_train.jsonl")
    return _write(file, tokenizer, ("prompt", "completion", "label"), rows, count)


def our_rows(file: Path, model: Path, record: type) -> tuple[list[list[int]], list[int]]:
    """The token ids that our side makes of each row, and where its response starts."""
    tokenizer = load_tokenizer(ModelConfig(path=str(model)))
    cfg = DataConfig(path=str(file), max_length=LONGEST)
    examples, _ = load_examples(cfg, "parity", tokenizer, (record,))
    bounds = list(zip(examples.row_starts, examples.row_starts[1:], strict=False))
    tokens = [examples.tokens[start:end].tolist() for start, end in bounds]
    return tokens, [int(examples.loss_mask[start:end].argmax()) for start, end in bounds]


def _rows(name: str) -> Iterator[dict[str, Any]]:
    """Each with a line end between prompt and response, which most tokens do not cross."""
    for row in read_json_lines(data_folder() / name):
        yield {**row, "prompt": row["prompt"] + "\n"}


def _write(
    file: Path,
    tokenizer: Any,
    names: Iterable[str],
    rows: Iterable[dict[str, Any]],
    count: int,
) -> Path:
    """The first short rows whose prompt and responses have the same tokens apart and joined."""
    kept: list[str] = []
    for row in rows:
        responses = [row[name] for name in ("chosen", "rejected", "completion") if name in row]
        if all(_alike(tokenizer, row["prompt"], response) for response in responses):
            kept.append(json.dumps({name: row[name] for name in names}))
        if len(kept) == count:
            break
    file.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return file


def _alike(tokenizer: Any, prompt: str, response: str) -> bool:
    if len(prompt) + len(response) > LONGEST - 1:
        return False
    apart = tokenizer(prompt)["input_ids"] + tokenizer(response)["input_ids"]
    return bool(apart == tokenizer(prompt + response)["input_ids"])
