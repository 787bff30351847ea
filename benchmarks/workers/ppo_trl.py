"""One run of TRL's PPOTrainer; prints responses a second as JSON."""

import os
import sys

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer

from benchmarks.workers import trl


def main(model: str, rows: str, *rest: str) -> None:
    """The rest: settings, in our names, then the precision."""
    *words, precision = rest
    given = dict(word.split("=", 1) for word in words)
    batch, a_pass = int(given["batch_size"]), int(given["rows_a_pass"])
    if precision == "bf16":  # its own Accelerator does not read `bf16`; `accelerate launch` sets it
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    frozen = torch.bfloat16 if precision == "bf16" else torch.float32
    fields = trl.settings(precision)
    del fields["max_length"]
    config = PPOConfig(
        **fields
        | {
            "per_device_train_batch_size": a_pass,
            "gradient_accumulation_steps": batch // a_pass,
            "learning_rate": 3e-6,
            "response_length": int(given["max_new_tokens"]),
            "stop_token": "eos",
            "num_sample_generations": 0,
        }
    )
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    prompts = trl.load_rows(rows).map(
        lambda row: {"input_ids": tokenizer(row["prompt"])["input_ids"]}, remove_columns="prompt"
    )
    language, scorer = AutoModelForCausalLM, AutoModelForSequenceClassification
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=language.from_pretrained(model, dtype=torch.float32),
        ref_model=language.from_pretrained(model, dtype=frozen),
        reward_model=scorer.from_pretrained(given["reward.model"], dtype=frozen),
        value_model=scorer.from_pretrained(given["reward.model"], dtype=torch.float32),
        train_dataset=prompts,
    )
    trl.measure(trainer, batch, "loss/policy_avg")


if __name__ == "__main__":
    main(*sys.argv[1:])
