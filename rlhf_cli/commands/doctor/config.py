from dataclasses import dataclass, field
from typing import Annotated, Literal

from rlhf_cli.commands.evaluate.config import HeldOutConfig
from rlhf_cli.config.schema import (
    DataPath,
    FunctionPath,
    Ge,
    ModelPath,
    OutputPath,
    Seed,
    Unit,
    no_rows,
)
from rlhf_cli.models.config import QuantConfig
from rlhf_cli.rollout.config import SamplingConfig


@dataclass(kw_only=True)
class DoctorConfig:
    """Say what happened in runs: problems with their numbers, causes, and what to try next.

    Reads run folders in any state: finished, running, crashed, and those of transformers and TRL.
    Nothing is written, and no model is loaded. Exit codes: 0, no problem found (warnings and notes
    are possible); 1, a problem found; 2, a wrong key; 3, no run. With reward= and policy= it
    measures instead whether a reward model is good enough for a policy.
    """

    run: str = ""
    """Folder of a run; or as an argument: `rlhf doctor runs/ppo`."""

    beside: list[str] = field(default_factory=list)
    """Further runs; or as arguments after the first: `rlhf doctor runs/a runs/b`."""

    reward: Annotated[str, ModelPath("reward_revision")] = ""
    """Reward model that is measured on responses of `policy`."""

    reward_revision: str = ""
    """Branch, tag or commit of a hub id in `reward`."""

    policy: Annotated[str, ModelPath("policy_revision")] = ""
    """Model that writes the responses."""

    policy_revision: str = ""
    """Branch, tag or commit of a hub id in `policy`."""

    prompts: Annotated[str, DataPath()] = ""
    """File of prompts for the policy, as for `rlhf generate`."""

    judge: Annotated[str, FunctionPath()] = ""
    """Function `FILE.py:NAME` of `prompts` and `responses` that returns a score per response; its
    order is what the reward model is compared with."""

    data: HeldOutConfig = field(default_factory=HeldOutConfig)
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.7))
    quant: QuantConfig = field(default_factory=QuantConfig)

    template: Literal["auto", "always", "never"] = "auto"
    """Whether a text prompt becomes a user message in the chat template, as for `rlhf generate`."""

    samples_per_prompt: Annotated[int, Ge(2)] = 8
    """Responses of the policy to each prompt."""

    batch_size: Annotated[int, Ge(1)] = 16
    """Responses decoded at once."""

    micro_batch_tokens: Annotated[int, Ge(0), Unit("tokens")] = 0
    """Tokens per forward pass of the reward model; does not change the result. 0 chooses it."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute dtype; `auto` is bf16 if the hardware supports it."""

    output: Annotated[str, OutputPath()] = ""
    """Also write the responses with their scores to this `.jsonl` file."""

    seed: Seed = 0
    """Seed of the bootstrap for the intervals; responses are sampled with `sampling.seed`."""

    @property
    def measures_reward(self) -> bool:
        """Whether a reward model is measured, not runs read."""
        return bool(self.reward or self.policy)

    @property
    def runs(self) -> list[str]:
        """Folders of all runs, in the order given."""
        return [self.run, *self.beside]

    def problems(self) -> list[str]:
        """Contradictions between options, one line each."""
        if not self.measures_reward:
            found = self._given_without_reward()
            if not self.run:
                found.append("run: none given; need a run's folder. Try rlhf doctor runs/ppo")
            return found
        found = [
            f"{name}: none given beside {other}; need both. Try {name}=runs/{example}"
            for name, other, example in (
                ("reward", "policy", "reward"),
                ("policy", "reward", "sft"),
            )
            if not getattr(self, name)
        ]
        if self.run:
            found.append(f"run: got {self.run} beside reward and policy; need one of the two forms")
        if no_rows(self.prompts):
            found.append("prompts: none given; the policy answers prompts. Try prompts=FILE")
        return found

    def _given_without_reward(self) -> list[str]:
        names = ("prompts", "judge", "output")
        return [
            f"{name}: given without reward and policy, which read it. "
            "Try reward=runs/reward policy=runs/sft, or leave it out"
            for name in names
            if getattr(self, name)
        ]
