"""`rlhf ppo` beside TRL's PPOTrainer: same models, prompts, batch, epochs, type; in turns.

    bash benchmarks/install_peers.sh
    RLHF_DATA=... python -m benchmarks.ppo [--value shared] [--batch 64] [--rounds 3] [--steps 4]
    RLHF_DATA=... python -m benchmarks.ppo --shape 135m --precisions bf16 --batch 16 --rounds 1
        --steps 2

Real prompts of at most 192 tokens, responses of up to 53, four epochs of one minibatch. Policy,
reference and reward model are each an 8 M Llama; with `--value model` ours has a value model of its
own as TRL always has, with `shared` a head on the policy. The policy has random weights and hardly
draws an end token, so that every response is 53 tokens long on both sides. The first step is not
counted.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.beside import in_turns, options, report
from benchmarks.common import SCRATCH, data_folder, make_model, model_folder, texts
from rlhf_cli.runs.run_files import read_json_lines

LONGEST, RESPONSE = 192, 53
"""Tokens of a prompt and of a response; 53 is TRL's default."""


def main() -> None:
    parser = options(__doc__)
    parser.set_defaults(steps=4)
    parser.add_argument("--value", choices=("shared", "model"), default="shared")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rows-a-pass", type=int, default=16, help="of TRL's updates")
    chosen = parser.parse_args()
    model, reward, rows, tokens = prepare(chosen.steps * chosen.batch, chosen.shape)
    argv = [
        *(model, rows),
        f"reward.model={reward}",
        f"value={chosen.value}",
        f"batch_size={chosen.batch}",
        f"max_new_tokens={RESPONSE}",
        f"rows_a_pass={chosen.rows_a_pass}",
    ]
    runs = in_turns("ppo", "1.12.0", argv, chosen)
    name = f"ppo_{chosen.value}"
    report(name, runs, tokens + RESPONSE, "responses", chosen.shape, chosen.batch)


def prepare(count: int, shape: str) -> tuple[str, str, str, float]:
    """The folders of policy and reward model, the prompts' file and their mean length."""
    rows = read_json_lines(data_folder() / "preference_helpful_train.jsonl")
    pairs = [texts(row) for row in rows]
    SCRATCH.mkdir(parents=True, exist_ok=True)
    model = model_folder(shape)
    reward = model.with_name(f"{model.name}_reward")
    tokenizer = make_model(model, (prompt + said for prompt, said in pairs), shape)
    make_reward_model(model, reward, tokenizer)
    sizes = {prompt: len(tokenizer(prompt)["input_ids"]) for prompt, _ in pairs}
    kept = [prompt for prompt, size in sizes.items() if size <= LONGEST][:count]
    file = SCRATCH / f"ppo_{count}.jsonl"
    file.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in kept), encoding="utf-8")
    return str(model), str(reward), str(file), statistics.mean(sizes[p] for p in kept)


def make_reward_model(model: Path, reward: Path, tokenizer: Any) -> None:
    """The policy's layers with a score of random weights."""
    from rlhf_cli.models.base_model import BaseOptions, load_base_model
    from rlhf_cli.models.checks import NEW_REWARD_HEAD
    from rlhf_cli.models.config import ModelConfig

    if not reward.exists():
        cfg = ModelConfig(path=str(model))
        options = BaseOptions(kind="reward_model", allowed=NEW_REWARD_HEAD)
        found = load_base_model(cfg, str(model), tokenizer, options)
        found.save_pretrained(reward)
        tokenizer.save_pretrained(reward)


if __name__ == "__main__":
    main()
