"""One run of TRL's RewardTrainer; prints pairs a second as JSON."""

import sys

from trl import RewardConfig, RewardTrainer

from benchmarks.workers import trl


def main(model: str, rows: str, precision: str) -> None:
    config = RewardConfig(**trl.settings(precision))
    trl.measure(RewardTrainer(model=model, args=config, train_dataset=trl.load_rows(rows)))


if __name__ == "__main__":
    main(*sys.argv[1:])
