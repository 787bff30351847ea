"""TRL's PPOTrainer on prompts of token ids; writes its responses, for another side to learn from.

PYTHONPATH=build/peers/trl-1.12.0 python -m benchmarks.parity.trl_ppo --model DIR --reference DIR
    --reward DIR --value DIR --rows FILE --out FILE.json [--set num_ppo_epochs=1]

Weights after the last update go into FILE.safetensors.
"""

import json
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from benchmarks.parity import peer


def recorded(function: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    """The function, whose arguments and result are kept."""

    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        calls.append((args, result))
        return result

    return call


def rollout(queries: Tensor, whole: Tensor, tokenizer: Any) -> dict[str, list[list[int]]]:
    """Prompts without padding, and responses up to their end token.

    Raises:
        SystemExit: a response has the pad token, which TRL takes for its end.
    """
    responses = []
    for row in whole[:, queries.shape[1] :].tolist():
        end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
        if tokenizer.pad_token_id in row[:end]:
            raise SystemExit("the policy drew its pad token; take another seed")
        responses.append(row[:end])
    prompts = [row[row != tokenizer.pad_token_id].tolist() for row in queries]
    return {"prompts": prompts, "responses": responses}


def make_trainer(chosen: Any) -> PPOTrainer:
    rows, tokenizer = peer.rows_and_tokenizer(chosen)
    tokenizer.padding_side = "left"
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        for path in (chosen.model, chosen.reference)
    )
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
        for path in (chosen.reward, chosen.value)
    )
    return PPOTrainer(
        args=PPOConfig(stop_token="eos", num_sample_generations=0, **peer.settings(chosen)),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=rows,
    )


def main() -> None:
    parser = peer.options(__doc__)
    for role in ("reference", "reward", "value"):
        parser.add_argument(f"--{role}", required=True, help="folder")
    chosen = parser.parse_args()
    trainer = make_trainer(chosen)
    written: list[Any] = []
    whitened: list[Any] = []
    with (
        patch.object(
            ppo_trainer, "batch_generation", recorded(ppo_trainer.batch_generation, written)
        ),
        patch.object(ppo_trainer, "masked_whiten", recorded(ppo_trainer.masked_whiten, whitened)),
    ):
        trainer.train()
    lines = [line for line in trainer.state.log_history if "loss/policy_avg" in line]
    # of each rollout the last table is the advantages; whitened rewards come before
    every = 1 + trainer.args.whiten_rewards
    found = {
        "rollouts": [
            rollout(args[1], result[0], trainer.processing_class) for args, result in written
        ],
        "advantages": [result.tolist() for _, result in whitened[every - 1 :: every]],
        "metrics": {name: [line[name] for line in lines] for name in lines[0]},
    }
    chosen.out.write_text(json.dumps(found) + "\n", encoding="utf-8")
    weights = trainer.accelerator.unwrap_model(trainer.model).state_dict()
    kept = {n: w.clone() for n, w in weights.items() if not n.startswith("critic_backbone.")}
    save_file(kept, chosen.out.with_suffix(".safetensors"))
    print(json.dumps({"rollouts": len(lines)}))


if __name__ == "__main__":
    main()
