"""TRL's RewardTrainer on pairs; a column `margin` is used where the rows have one.

PYTHONPATH=build/peers/trl-1.16.0 python -m benchmarks.parity.trl_reward --model DIR --rows FILE
    --out FILE.json [--set center_rewards_coefficient=0.01]
"""

from itertools import chain

import torch
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from benchmarks.parity import peer


def main() -> None:
    chosen = peer.options(__doc__).parse_args()
    rows, tokenizer = peer.rows_and_tokenizer(chosen)
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(chosen.model, dtype=torch.float32),
        args=RewardConfig(max_length=None, **peer.settings(chosen)),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    made = trainer.train_dataset
    pairs = zip(made["chosen_ids"], made["rejected_ids"], strict=True)
    peer.run(trainer, chosen.out, list(chain.from_iterable(pairs)))


if __name__ == "__main__":
    main()
