"""What the scripts of TRL's trainers share: options, settings, the run, and what it leaves.

Runs with TRL in front of PYTHONPATH; knows nothing of this package.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from transformers import AutoTokenizer, Trainer


def options(doc: str | None) -> argparse.ArgumentParser:
    """The options of every such script."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--model", required=True, help="folder")
    parser.add_argument("--rows", required=True, help="JSON lines, taken in their order")
    parser.add_argument("--out", required=True, type=Path, help="JSON file to write")
    parser.add_argument("--batch", type=int, default=8, help="rows of the file in a step")
    parser.add_argument("--rows-a-pass", type=int, default=0, help="a part of them; 0: all")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="fields of TRL's config, in JSON"
    )
    return parser


def settings(chosen: argparse.Namespace) -> dict[str, Any]:
    """Fields of TRL's config: fp32, rows in order, AdamW with a constant rate."""
    rows_a_pass = chosen.rows_a_pass or chosen.batch
    fields = dict(field.split("=", 1) for field in chosen.set)
    return {
        "output_dir": "build/benchmarks/parity/trl",
        "per_device_train_batch_size": rows_a_pass,
        "gradient_accumulation_steps": chosen.batch // rows_a_pass,
        "num_train_epochs": 1,
        "learning_rate": chosen.lr,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        **{name: json.loads(value) for name, value in fields.items()},
    }


def rows_and_tokenizer(chosen: argparse.Namespace) -> tuple[Dataset, Any]:
    """The rows as text, which TRL tokenizes, and the model's tokenizer."""
    rows = load_dataset("json", data_files=chosen.rows, split="train")
    return rows, AutoTokenizer.from_pretrained(chosen.model)


def run(trainer: Trainer, out: Path, tokens: list[list[int]], **more: Any) -> None:
    """Train, and write what TRL logged and the token ids that it trained on.

    Args:
        trainer: of TRL.
        out: JSON file: a list of numbers a step under each name that TRL logs (null where a step
            has none), `tokens`, and what else is given.
        tokens: ids of each row, a pair's chosen one first.
        more: anything else to write.
    """
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    names = dict.fromkeys(name for line in lines for name in line)
    found = {name: [line.get(name) for line in lines] for name in names}
    out.write_text(json.dumps({**found, "tokens": tokens, **more}) + "\n", encoding="utf-8")
    print(json.dumps({"steps": len(lines), "first": lines[0]["loss"], "last": lines[-1]["loss"]}))
