"""TRL's BCOTrainer on labelled rows, against its own copy of the model.

PYTHONPATH=build/peers/trl-1.13.0 python -m benchmarks.parity.trl_bco --model DIR --rows FILE
    --out FILE.json [--udm] [--set beta=0.1]

With `--udm` prompts are embedded by the starting model: the mean of its last hidden states.
"""

from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM
from trl.experimental.bco import BCOConfig, BCOTrainer

from benchmarks.parity import peer

LONGEST = 1 << 20
"""TRL takes 512 where none is given."""


@torch.no_grad()
def embed(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """[B, d]: mean of the last hidden states over the tokens of each prompt."""
    states = model(input_ids, attention_mask=attention_mask).last_hidden_state
    kept = attention_mask[..., None]
    return (states * kept).sum(1) / kept.sum(1)


def each_once(count: int, size: tuple[int]) -> np.ndarray:
    """Instead of TRL's draw with replacement: a sample that another program can have too."""
    return np.arange(count)[: size[0]]


def classifier(trainer: BCOTrainer) -> dict[str, Any]:
    """UDM's classifier, and what it says of each row's prompt."""
    prompts = [torch.tensor([row["embedding_input_ids"]]) for row in trainer.train_dataset]
    vectors = [trainer.embedding_func(ids, torch.ones_like(ids)) for ids in prompts]
    desirable = trainer.clf.predict_proba(torch.cat(vectors).numpy())[:, 1]
    found = {"coefficients": trainer.clf.coef_[0], "intercept": trainer.clf.intercept_[0]}
    return {**{k: v.tolist() for k, v in found.items()}, "probabilities": desirable.tolist()}


def main() -> None:
    parser = peer.options(__doc__)
    parser.add_argument("--udm", action="store_true")
    chosen = parser.parse_args()
    rows, tokenizer = peer.rows_and_tokenizer(chosen)
    matching: dict[str, Any] = {}
    if chosen.udm:
        encoder = AutoModel.from_pretrained(chosen.model, dtype=torch.float32).eval()
        matching = {"embedding_func": partial(embed, encoder), "embedding_tokenizer": tokenizer}
    with patch("numpy.random.choice", each_once):
        trainer = BCOTrainer(
            model=AutoModelForCausalLM.from_pretrained(chosen.model, dtype=torch.float32),
            args=BCOConfig(
                max_length=LONGEST, remove_unused_columns=False, **peer.settings(chosen)
            ),
            train_dataset=rows,
            processing_class=tokenizer,
            **matching,
        )
    made = trainer.train_dataset
    more: dict[str, Any] = {"udm": classifier(trainer)} if chosen.udm else {}
    more["response_starts"] = [labels.count(-100) for labels in made["completion_labels"]]
    peer.run(trainer, chosen.out, list(made["completion_input_ids"]), **more)


if __name__ == "__main__":
    main()
