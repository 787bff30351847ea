"""TRL's SFTTrainer on given token ids; prints its losses and gradient norms as JSON."""

import json
import sys

import torch
from datasets import load_dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

ROWS_A_PASS = 4


def main(model: str, adapter: str, ids: str, lr: str, batch: str) -> None:
    config = SFTConfig(
        output_dir="build/benchmarks/parity/trl",
        per_device_train_batch_size=ROWS_A_PASS,
        gradient_accumulation_steps=int(batch) // ROWS_A_PASS,
        num_train_epochs=1,
        learning_rate=float(lr),
        lr_scheduler_type="constant",
        weight_decay=0.01,
        max_length=None,
        completion_only_loss=True,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        train_sampling_strategy="sequential",
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    )
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if adapter:
        loaded = PeftModel.from_pretrained(loaded, adapter, is_trainable=True)
    trainer = SFTTrainer(
        model=loaded,
        args=config,
        train_dataset=load_dataset("json", data_files=ids, split="train"),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    lines = [entry for entry in trainer.state.log_history if "loss" in entry]
    print(json.dumps({name: [line[name] for line in lines] for name in ("loss", "grad_norm")}))


if __name__ == "__main__":
    main(*sys.argv[1:])
