"""One run of TRL's DPOTrainer; prints pairs a second as JSON."""

import sys

from trl import DPOConfig, DPOTrainer

from benchmarks.workers import trl


def main(model: str, rows: str, reference: str, precision: str) -> None:
    stored = reference == "model.reference=stored"
    config = DPOConfig(precompute_ref_log_probs=stored, **trl.settings(precision))
    trl.measure(DPOTrainer(model=model, args=config, train_dataset=trl.load_rows(rows)))


if __name__ == "__main__":
    main(*sys.argv[1:])
