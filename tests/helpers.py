"""Small rows and models that many tests use."""

import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf_cli.config import recipe
from rlhf_cli.context import forked_rng
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.rewards.config import RewardsConfig
from rlhf_cli.runs import lock
from rlhf_cli.train import checkpoint_files as files
from rlhf_cli.train.metrics import read_metrics

DATA = Path(os.environ.get("RLHF_DATA", Path(__file__).parents[2] / "shared" / "data"))


def rows_of(*rows: list[int], scored: list[list[int]] | None = None) -> TokenBatch:
    """Rows from token ids; `scored` are positions in each row, by default all but the last."""
    lengths = torch.tensor([len(row) for row in rows])
    starts = lengths.cumsum(0) - lengths
    chosen = scored or [list(range(len(row) - 1)) for row in rows]
    flat = [int(start) + p for start, row in zip(starts, chosen, strict=True) for p in row]
    tokens = torch.tensor([token for row in rows for token in row])
    return TokenBatch(
        tokens, lengths, torch.tensor(flat, dtype=torch.long), torch.arange(len(rows))
    )


def recipe_words(name: str) -> tuple[str, list[str]]:
    """The command of a recipe, and `config=NAME` with what it leaves to the command line."""
    read = recipe.read(recipe.find(name), name, ("model", "data"))
    words = [f"config={name}"]
    if not {"model"} & {*read.values, *read.choices}:
        words += ["model=tiny"]
        positions = 512  # of the tiny model
        longer = read.values.get("data", {}).get("max_length", 0) > positions
        words += [f"data.max_length={positions}"] if longer else []
    sources = {"terms", *RewardsConfig.kinds}
    needs_reward = read.stage in ("ppo", "grpo") and not sources & {*read.values.get("reward", {})}
    words += ["reward.length_penalty=1"] if needs_reward else []
    has_rows = "data" in read.choices or "path" in read.values.get("data", {})
    return read.stage or "sft", words if has_rows else [*words, "data=tiny"]


def random_rows(lengths: list[int], vocab: int = 97, seed: int = 0) -> TokenBatch:
    """Rows of random tokens, every position scored."""
    generator = torch.Generator().manual_seed(seed)
    return rows_of(
        *(torch.randint(0, vocab, (length,), generator=generator).tolist() for length in lengths)
    )


def tiny_llama(seed: int = 0, **changes: Any) -> Any:
    """A two-layer Llama with random weights, in fp32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    }
    with forked_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**{**shape, **changes}))


def tokenizer_of(ids: Iterable[int], end: int | None = 2) -> Any:
    """What the engine asks of a tokenizer: which ids have a token, and which of them ends."""
    known = {f"<{index}>": index for index in ids}
    return SimpleNamespace(eos_token_id=end, get_vocab=lambda: known)


def fill_disk_after_one_checkpoint(patch: pytest.MonkeyPatch) -> None:
    """Let the weights and moments of one checkpoint be written; the next finds no space."""
    real, calls = files.save_file, []

    def full(tensors: Any, path: Path) -> None:
        calls.append(path)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        real(tensors, path)

    patch.setattr(files, "save_file", full)


MACHINE = ("tokens_per_second", "step_seconds", "peak_fraction", "memory_bytes")
"""Metrics that tell of the machine, not of the run."""


def without_machine(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of metrics that two runs must have in common."""
    return [{k: v for k, v in line.items() if k not in MACHINE} for line in lines]


def lines_of(out: Path) -> list[dict[str, Any]]:
    """Metrics of a run, as another run must have them."""
    return without_machine(read_metrics(out / "metrics.jsonl"))


def last_of_each(*words: str) -> list[str]:
    """The words, of each key the last one: the command line refuses two values."""
    return list({word.partition("=")[0]: word for word in words}.values())


def take_over(folder: Path) -> None:
    """Another host takes a run folder over while its owner, this process, is suspended."""
    owner = {"pid": 1, "host": "elsewhere", "started": "1"}
    (folder / lock.NAME).write_text(json.dumps(owner))
    lock._heartbeats[folder].at -= lock.STALE_SECONDS


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and keeps what was written to it."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """What a reader sees in each line, after what was written over in it."""
        return [line.rpartition("\r\x1b[K")[2] for line in self.getvalue().split("\n")]
