"""TRL's DPOTrainer on pairs, against its own copy of the model.

PYTHONPATH=build/peers/trl-1.16.0 python -m benchmarks.parity.trl_dpo --model DIR --rows FILE
    --out FILE.json [--loss-type robust] [--set beta=0.1 label_smoothing=0.1]
"""

import torch
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from benchmarks.parity import peer


def main() -> None:
    parser = peer.options(__doc__)
    parser.add_argument("--loss-type", nargs="+", default=["sigmoid"])
    chosen = parser.parse_args()
    rows, tokenizer = peer.rows_and_tokenizer(chosen)
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(chosen.model, dtype=torch.float32),
        args=DPOConfig(max_length=None, loss_type=chosen.loss_type, **peer.settings(chosen)),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    sides = ("chosen_ids", "rejected_ids")
    made = [(row["prompt_ids"], row[side]) for row in trainer.train_dataset for side in sides]
    tokens = [prompt + response for prompt, response in made]
    peer.run(trainer, chosen.out, tokens, response_starts=[len(prompt) for prompt, _ in made])


if __name__ == "__main__":
    main()
