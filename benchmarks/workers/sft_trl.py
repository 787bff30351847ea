"""One run of TRL's SFTTrainer; prints rows a second as JSON."""

import sys

from trl import SFTConfig, SFTTrainer

from benchmarks.workers import trl


def main(model: str, rows: str, precision: str) -> None:
    config = SFTConfig(**trl.settings(precision))
    trl.measure(SFTTrainer(model=model, args=config, train_dataset=trl.load_rows(rows)))


if __name__ == "__main__":
    main(*sys.argv[1:])
