"""Updates of `rlhf ppo` beside TRL's own PPOTrainer, from the same responses.

    bash benchmarks/install_peers.sh
    RLHF_DATA=... python -m benchmarks.parity.ppo [--seeds 3] [--only "four epochs"]

TRL writes the responses, and ours learns from the same tokens; each side scores them itself. In
fp32, with `compat=trl`, from the same four models, which all differ. Ours cuts a rollout into
several micro-batches.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.common import SCRATCH, child, save
from benchmarks.parity.compare import TOLERANCE, compare
from benchmarks.parity.ppo_ours import Learned, Written, learn
from benchmarks.parity.ppo_start import Models, make_models, write_prompts
from rlhf_cli.stages.ppo.advantages import Experience

BATCH, LR, RESPONSE, MICRO_BATCH_TOKENS = 32, 3e-4, 24, 512
END = 1
"""Token of the tiny tokenizer."""

METRICS = {
    "objective/scores": "objective/scores",
    "objective/entropy": "objective/entropy",
    "objective/non_score_reward": "objective/non_score_reward",
    "objective/rlhf_reward": "objective/rlhf_reward",
    "loss/policy": "loss/policy_avg",
    "loss/value": "loss/value_avg",
}
"""Ours to TRL's."""


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: of the case.
        ours: settings of our command line.
        peer: fields of TRL's config.
        rollouts: one after the other, each from the weights that the one before left.
    """

    name: str
    ours: tuple[str, ...]
    peer: tuple[str, ...]
    rollouts: int = 1


def unclipped(name: str, ours: Sequence[str] = (), peer: Sequence[str] = ()) -> Case:
    """A case in which no ratio and no value is held near the old one."""
    here = ("clip_range=1e6", "value_clip_range=1e6", *ours)
    return Case(name, here, ("cliprange=1e6", "cliprange_value=1e6", *peer))


ONCE = (("ppo_epochs=1",), ("num_ppo_epochs=1",))
# AdamW's first steps do not depend on the gradient's scale; with an epsilon near it, they do
SCALED = (("ppo_epochs=1", "train.adam_epsilon=1e-3"), ("num_ppo_epochs=1", "adam_epsilon=1e-3"))
CASES = (
    unclipped("one epoch", *ONCE),
    unclipped("four epochs"),
    Case("four epochs, clipped", (), ()),
    unclipped("whitened rewards", ("whiten_rewards=true",), ("whiten_rewards=true",)),
    unclipped(
        "k3, penalty, gamma",
        ("kl_estimator=k3", "missing_eos_penalty=1", "gamma=0.99"),
        ('kl_estimator="k3"', "missing_eos_penalty=1", "gamma=0.99"),
    ),
    unclipped("one epoch, epsilon 1e-3", *SCALED),
    Case("ten rollouts, clipped", (), (), rollouts=10),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[case.name for case in CASES])
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    folder = SCRATCH / "parity" / "ppo"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    models = make_models(folder)
    found = {
        f"{case.name}, seed {seed}": compared(case, seed, folder, models)
        for case in CASES
        if chosen.only in (None, case.name)
        for seed in range(chosen.seeds)
    }
    if chosen.only is None:
        save("parity_ppo", found)


def compared(case: Case, seed: int, folder: Path, models: Models) -> dict[str, object]:
    """Run both sides on the same responses.

    Raises:
        SystemExit: prompts are tokenized differently, or a number differs by more than is allowed.
    """
    name = f"ppo, {case.name}, seed {seed}"
    prompts = write_prompts(folder / "prompts.jsonl", models.policy, BATCH * case.rollouts)
    theirs, weights = run_peer(case, seed, folder, models)
    out = folder / "ours"
    shutil.rmtree(out, ignore_errors=True)
    words = settings(case, models)
    here = learn(out, models.policy, theirs["rollouts"], prompts, words, tuple(METRICS))
    told = describe(theirs["rollouts"])
    print(f"{name}: {told}, the same on both sides")
    metrics = {key: theirs["metrics"][there] for key, there in METRICS.items()}
    result = compare(name, here.metrics, metrics)
    advantages = map(torch.tensor, theirs["advantages"])
    differences = {
        "advantages_largest": max(map(apart, here.experience, advantages)),
        **moved(here, models, weights),
    }
    print(f"{name}: " + ", ".join(f"{key} {value:.1e}" for key, value in differences.items()))
    checked = ("advantages_largest", "parameters_largest", "change_relative")
    if max(differences[key] for key in checked) > TOLERANCE:
        raise SystemExit(f"{name}: advantages or parameters differ by more than {TOLERANCE:g}")
    return {"responses": told, **differences, **result}


def run_peer(
    case: Case, seed: int, folder: Path, models: Models
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What TRL wrote and logged, and its weights after the last update."""
    out = folder / "peer.json"
    where = {"model": models.policy, "reference": models.reference}
    where |= {"reward": models.reward, "value": models.value}
    options = [word for name, path in where.items() for word in (f"--{name}", str(path))]
    options += ["--rows", str(folder / "prompts.jsonl"), "--out", str(out)]
    fields = (f"seed={seed}", f"response_length={RESPONSE}", *case.peer)
    options += ["--batch", str(BATCH), "--lr", str(LR), "--set", *fields]
    child("benchmarks.parity.trl_ppo", *options, path="build/peers/trl-1.12.0")
    return json.loads(out.read_text(encoding="utf-8")), load_file(out.with_suffix(".safetensors"))


def settings(case: Case, models: Models) -> list[str]:
    """Of our command line."""
    return [
        "template=never",
        "compat=trl",
        "value=model",
        f"value_model={models.value}",
        f"reward.model={models.reward}",
        f"model.reference={models.reference}",
        f"max_new_tokens={RESPONSE}",
        "max_length=256",
        f"batch_size={BATCH}",
        f"max_steps={case.rollouts}",
        f"lr={LR}",
        "train.max_grad_norm=0",
        f"train.micro_batch_tokens={MICRO_BATCH_TOKENS}",
        *case.ours,
    ]


def describe(rollouts: Written) -> str:
    """How many responses there are, and how many have no end token."""
    responses = [row for rollout in rollouts for row in rollout["responses"]]
    cut = sum(END not in row for row in responses)
    return f"{len(responses)} responses of {sum(map(len, responses)):,} tokens, {cut} cut off"


def apart(mine: Experience, theirs: Tensor) -> float:
    """The largest difference of an advantage, over the tokens of responses."""
    wide = torch.zeros_like(mine.advantages)
    wide[:, : theirs.shape[1]] = theirs[:, : wide.shape[1]]
    return float((mine.advantages - wide)[mine.advantages != 0].abs().max())


def moved(mine: Learned, models: Models, theirs: dict[str, Tensor]) -> dict[str, float]:
    """How far the parameters are apart, and how far they have gone.

    `change_relative` is the norm of the difference over the norm of TRL's change.
    """
    left = dict(mine.weights)
    difference, change = [], []
    for here, there, folder in (
        ("model.", "policy.", models.policy),
        ("value_model.model.model.", "value_model.", models.value),
    ):
        for name, before in load_file(folder / "model.safetensors").items():
            after = theirs[there + name]
            difference.append((left.pop(here + name) - after).flatten())
            change.append((after - before).flatten())
    assert not left, sorted(left)
    apart, gone = torch.cat(difference), torch.cat(change)
    return {
        "parameters_largest": float(apart.abs().max()),
        "parameters_changed": float(gone.abs().max()),
        "change_relative": float(apart.norm() / gone.norm()),
    }


if __name__ == "__main__":
    main()
