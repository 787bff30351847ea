"""Folders of transformers' `Trainer` and of TRL: their log, with our names of its metrics."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

STATE = "trainer_state.json"

_NAMES = {
    "learning_rate": "lr",
    "policy/approxkl_avg": "policy/approx_kl",
    "policy/clipfrac_avg": "policy/clip_fraction",
    "policy/entropy_avg": "policy/entropy",
    "loss/policy_avg": "loss/policy",
    "loss/value_avg": "loss/value",
    "val/ratio": "policy/ratio",
    # GRPO and RLOO of TRL
    "reward": "objective/scores",
    "completions/mean_length": "tokens/response_length",
    "clip_ratio/region_mean": "policy/clip_fraction",
    # SFT and reward models of TRL
    "mean_token_accuracy": "accuracy",
    "max_reward": "score/max",
    "min_reward": "score/min",
    "mean_reward": "score",
}
"""Their name -> ours, where the quantity is the same."""

_STAGES = {
    "ppo": ("objective/scores", "policy/approx_kl", "objective/kl"),
    "dpo": ("rewards/chosen", "rewards/margins"),
    "reward": ("score", "score/max", "margin"),
}
"""Stage -> metrics that only runs of it have."""


def find_state(path: Path) -> Path | None:
    """Find the log of a run: in its folder, else in its last checkpoint."""
    if (path / STATE).is_file():
        return path / STATE
    found = {
        file: int(number)
        for file in path.glob(f"checkpoint-*/{STATE}")
        if (number := file.parent.name.removeprefix("checkpoint-")).isdecimal()
    }
    return max(found, key=lambda file: found[file], default=None)


def history(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of the log, without the summary at the end."""
    lines = state.get("log_history")
    found = [line for line in lines if isinstance(line, dict)] if isinstance(lines, list) else []
    return [line for line in found if "train_runtime" not in line]


def rename(line: Mapping[str, Any]) -> dict[str, Any]:
    """Give the metrics of a line our names; those of held-out rows begin with `eval/`."""
    found: dict[str, Any] = {}
    for name, value in line.items():
        held_out, bare = name.startswith("eval_"), name.removeprefix("eval_")
        ours = _NAMES.get(bare, bare)
        found[f"eval/{ours}" if held_out else ours] = value
    clipped = line.get("completions/clipped_ratio")
    if isinstance(clipped, int | float):
        found["tokens/eos_fraction"] = 1 - clipped
    constant = line.get("frac_reward_zero_std")
    if isinstance(constant, int | float):
        found["objective/teaching"] = 1 - constant
    return found


def guess_stage(names: Collection[str]) -> str:
    """The stage that the metrics' names belong to; `sft` for a loss alone, or empty."""
    for stage, marks in _STAGES.items():
        if {*marks} & {*names}:
            return stage
    return "sft" if "loss" in names else ""


def options(state: Mapping[str, Any]) -> dict[str, Any]:
    """The few keys of the configuration that the log states, under our names."""
    known = {"max_steps": "max_steps", "num_train_epochs": "epochs", "logging_steps": "log_steps"}
    found = {ours: state[theirs] for theirs, ours in known.items() if theirs in state}
    return {"train": found} if found else {}
