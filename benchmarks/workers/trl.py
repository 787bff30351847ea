"""What the workers of TRL's trainers share: settings, rows, the clock, what is printed."""

import json
import time
from typing import Any

from datasets import Dataset, load_dataset
from transformers import Trainer, TrainerCallback

BATCH = 16


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.times.append(time.monotonic())


def settings(precision: str) -> dict[str, Any]:
    """Fields of TRL's config."""
    return {
        "output_dir": "build/benchmarks/trl",
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "learning_rate": 1e-4,
        "max_length": 1024,  # longer than any row
        "bf16": precision == "bf16",
        "use_cpu": True,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }


def load_rows(file: str) -> Dataset:
    return load_dataset("json", data_files=file, split="train")


def measure(trainer: Trainer, batch: int = BATCH, loss: str = "loss") -> None:
    """Train, and print examples a second; the first step is not counted."""
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    speed = batch * (len(clock.times) - 1) / (clock.times[-1] - clock.times[0])
    losses = [entry[loss] for entry in trainer.state.log_history if loss in entry]
    print(json.dumps({"rows_per_second": speed, "last_loss": losses[-1]}))
