"""One run of TRL's SFTTrainer; prints rows a second as JSON."""

import json
import sys
import time

from datasets import load_dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.times.append(time.monotonic())


def main(model: str, rows: str, precision: str, number: str) -> None:
    clock = Clock()
    config = SFTConfig(
        output_dir=f"build/benchmarks/trl_{precision}_{number}",
        per_device_train_batch_size=16,
        num_train_epochs=1,
        learning_rate=1e-4,
        max_length=512,
        bf16=precision == "bf16",
        use_cpu=True,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    )
    data = load_dataset("json", data_files=rows, split="train")
    trainer = SFTTrainer(model=model, args=config, train_dataset=data, callbacks=[clock])
    trainer.train()
    steps = len(clock.times) - 1
    speed = 16 * steps / (clock.times[-1] - clock.times[0])
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(json.dumps({"rows_per_second": speed, "last_loss": losses[-1]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
