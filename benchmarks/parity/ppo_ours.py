"""Our side of PPO: one run that learns from the responses of another policy."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from safetensors.torch import load_file
from torch import Tensor

from benchmarks.parity import ours
from rlhf_cli.rollout.response import Response
from rlhf_cli.stages.ppo import experience as ppo_experience
from rlhf_cli.stages.ppo.advantages import Experience

Written = Sequence[dict[str, list[list[int]]]]
"""Rollouts: the token ids of `prompts` and `responses`."""


@dataclass(frozen=True)
class Learned:
    """What came of a run.

    Attributes:
        metrics: what is logged of each rollout.
        experience: of each rollout.
        weights: of policy (`model.`) and value model (`value_model.model.model.`) at the end.
    """

    metrics: ours.Series
    experience: list[Experience]
    weights: dict[str, Tensor]


class Replay:
    """Stands where responses are drawn, and gives those that another policy wrote."""

    def __init__(self, rollouts: Written) -> None:
        self.rollouts = iter(rollouts)

    def __call__(
        self, policy: Any, tokenizer: Any, prompts: Sequence[list[int]], *_: Any, **__: Any
    ) -> list[Response]:
        """The responses of the next rollout.

        Raises:
            SystemExit: its prompts are others.
        """
        rollout = next(self.rollouts)
        if list(prompts) != rollout["prompts"]:
            raise SystemExit("the two sides do not have the same token ids of prompts")
        responses = rollout["responses"]
        end = tokenizer.eos_token_id
        return [
            Response(index, index, prompt, ids, finished=ids[-1] == end)
            for index, (prompt, ids) in enumerate(zip(prompts, responses, strict=True))
        ]


def learn(
    out: Path,
    model: Path,
    rollouts: Written,
    prompts: dict[tuple[int, ...], str],
    settings: list[str],
    names: tuple[str, ...],
) -> Learned:
    """Run `rlhf ppo` on recorded rollouts.

    Args:
        out: its new folder.
        model: folder of the policy.
        rollouts: one a step.
        prompts: text of each prompt's tokens.
        settings: of the command line.
        names: of the metrics.

    Raises:
        SystemExit: the run failed, or prompts are tokenized differently.
    """
    rows = out.with_suffix(".jsonl")
    asked = [prompts[tuple(ids)] for rollout in rollouts for ids in rollout["prompts"]]
    rows.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in asked))
    experience: list[Experience] = []
    real = ppo_experience.compute_advantages

    def keep(*args: Any) -> Experience:
        experience.append(real(*args))
        return experience[-1]

    with (
        patch("rlhf_cli.rollout.engines.generate", Replay(rollouts)),
        patch.object(ppo_experience, "compute_advantages", keep),
    ):
        metrics = ours.run("ppo", out, model, rows, settings, names)
    last = max((out / "checkpoints").iterdir())
    return Learned(metrics, experience, load_file(last / "weights.safetensors"))
