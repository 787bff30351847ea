"""Samples to score, and a command that has the keys of rewards."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rlhf_cli.config.args import parse
from rlhf_cli.config.command import Command
from rlhf_cli.context import RunContext
from rlhf_cli.data.records.fields import Message
from rlhf_cli.preflight.hub import unfinished_runs
from rlhf_cli.preflight.rewards import reward_problems
from rlhf_cli.resolve import Resolved, resolve
from rlhf_cli.rewards.config import RewardsConfig
from rlhf_cli.rewards.samples import Samples


@dataclass(kw_only=True)
class ScoringConfig:
    """Score responses."""

    reward: RewardsConfig = field(default_factory=RewardsConfig)


def preflight(cfg: ScoringConfig) -> list[str]:
    return unfinished_runs(cfg) or reward_problems(cfg.reward)


COMMAND = Command(
    "score", ScoringConfig, "nowhere:run", trains=False, preflight=f"{__name__}:preflight"
)


def compose(*words: str) -> Resolved:
    return resolve(COMMAND, parse(COMMAND, list(words)))


def rewards(*words: str) -> RewardsConfig:
    found: RewardsConfig = compose(*words).config.reward
    return found


def context(out: Path = Path()) -> RunContext:
    return RunContext(torch.device("cpu"), torch.float32, 0, out)


def samples(*pairs: tuple[Any, str], tokenizer: Any = None, **columns: list[Any]) -> Samples:
    """Prompts and responses; tokens are those of the texts, with an end token, or one a word."""

    def ids(text: Any) -> list[int]:
        if tokenizer is None:
            return list(range(len(str(text).split())))
        return list(tokenizer(str(text), add_special_tokens=False)["input_ids"])

    end = [] if tokenizer is None else [tokenizer.eos_token_id]
    return Samples(
        [prompt for prompt, _ in pairs],
        [response for _, response in pairs],
        [ids(prompt) for prompt, _ in pairs],
        [ids(response) + end for _, response in pairs],
        columns,
    )


def user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)
