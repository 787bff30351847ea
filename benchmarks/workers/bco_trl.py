"""One run of TRL's BCOTrainer; prints rows a second as JSON."""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.bco import BCOConfig, BCOTrainer

from benchmarks.workers import trl


def main(model: str, rows: str, reference: str, precision: str) -> None:
    stored = reference == "model.reference=stored"
    config = BCOConfig(
        precompute_ref_log_probs=stored, remove_unused_columns=False, **trl.settings(precision)
    )
    trainer = BCOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=config,
        train_dataset=trl.load_rows(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trl.measure(trainer)


if __name__ == "__main__":
    main(*sys.argv[1:])
