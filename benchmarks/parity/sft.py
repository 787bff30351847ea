"""Twenty steps of `rlhf sft` beside TRL's own SFTTrainer on the same token ids, in the same order.

    bash benchmarks/install_peers.sh
    RLHF_DATA=... python -m benchmarks.parity.sft

In fp32, full and with an adapter that both sides load from the same files. Ours cuts a step by
tokens into flat rows, TRL's by rows into padded ones; the optimizer is AdamW on both.
"""

import json
import shutil
from pathlib import Path

import torch

from benchmarks.common import SCRATCH, child, data_folder, save, texts
from benchmarks.parity import ours
from benchmarks.parity.compare import compare
from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.dataset import load_examples
from rlhf_cli.data.records.types import PromptCompletionRecord
from rlhf_cli.models.attach_adapters import attach_adapters
from rlhf_cli.models.base_model import build_random_model
from rlhf_cli.models.config import AdapterConfig, ModelConfig
from rlhf_cli.models.resolve import ModelSource
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.runs.run_files import read_json_lines

STEPS, BATCH, LR, LONGEST = 20, 16, 1e-3, 512


def main() -> None:
    folder = SCRATCH / "parity"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model, adapter = starting_points(folder)
    rows = write_rows(folder / "rows.jsonl")
    ids = write_ids(folder / "ids.jsonl", rows, model)
    found = {}
    for name, start in (("full", model), ("LoRA", adapter)):
        argv = [str(model), "" if start is model else str(start), str(ids), str(LR), str(BATCH)]
        peer = child("benchmarks.parity.trl_sft", *argv, path="build/peers/trl-1.16.0")
        here = ours.run("sft", folder / name, start, rows, settings())
        found[f"sft, {name}"] = compare(f"sft, {name}", here, peer)
    save("parity_sft", found)


def starting_points(folder: Path) -> tuple[Path, Path]:
    """A small Llama with random weights, and an adapter on it that is no longer zero."""
    cfg = ModelConfig(path="tiny")
    tokenizer = load_tokenizer(cfg)
    base = build_random_model(cfg, tokenizer, seed=0)
    for target in (folder / "model", folder / "adapter"):
        tokenizer.save_pretrained(target)
    base.save_pretrained(folder / "model")
    source = ModelSource(str((folder / "model").absolute()))
    adapters = attach_adapters(base, source, AdapterConfig(kind="lora", rank=8), seed=0)
    generator = torch.Generator().manual_seed(0)
    for param in adapters.model.parameters():
        if param.requires_grad:
            param.data += 0.01 * torch.randn(param.shape, generator=generator)
    adapters.save(folder / "adapter")
    return folder / "model", folder / "adapter"


def write_rows(file: Path) -> Path:
    """Prompts and chosen responses of real preference pairs."""
    rows = read_json_lines(data_folder() / "preference_helpful_train.jsonl")
    pairs = [texts(row) for row in rows]
    short = [pair for pair in pairs if sum(map(len, pair)) < LONGEST][: STEPS * BATCH]
    rows = [json.dumps({"prompt": prompt, "completion": said}) for prompt, said in short]
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return file


def write_ids(file: Path, rows: Path, model: Path) -> Path:
    """The token ids that our side trains on, and which of them count."""
    tokenizer = load_tokenizer(ModelConfig(path=str(model)))
    cfg = DataConfig(path=str(rows), max_length=LONGEST)
    examples, _ = load_examples(cfg, "sft", tokenizer, (PromptCompletionRecord,))
    with file.open("w", encoding="utf-8") as target:
        for start, end in zip(examples.token_starts, examples.token_starts[1:], strict=False):
            tokens = examples.tokens[start:end].tolist()
            mask = examples.loss_mask[start:end].astype(int).tolist()
            target.write(json.dumps({"input_ids": tokens, "completion_mask": mask}) + "\n")
    return file


def settings() -> list[str]:
    return [f"max_length={LONGEST}", f"batch_size={BATCH}", f"max_steps={STEPS}", f"lr={LR}"]


if __name__ == "__main__":
    main()
