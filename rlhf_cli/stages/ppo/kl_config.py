from dataclasses import dataclass
from typing import Annotated, Literal

from rlhf_cli.config.schema import Ge, Gt, Unit
from rlhf_cli.config.values import unused_problems


@dataclass(kw_only=True)
class KLPenaltyConfig:
    """The KL penalty of PPO, and limits on the KL."""

    kl_coef: Annotated[float, Ge(0)] = 0.05
    """KL penalty coefficient β: subtracted from the reward per nat of KL to the reference."""

    kl_in: Literal["reward", "loss"] = "reward"
    """Where the KL penalty is applied: `reward` subtracts it from the reward of each token, as in
    PPO; `loss` adds it to the loss, as in GRPO."""

    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of a token's KL: `k1` is the log-ratio, `k2` half its square, `k3` unbiased and
    never negative."""

    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """`adaptive` changes `kl_coef` so that the KL approaches `kl_target` (arXiv:1909.08593)."""

    kl_target: Annotated[float, Gt(0), Unit("nats")] = 6.0
    """Target KL of a whole response, for `kl_controller=adaptive`."""

    kl_horizon: Annotated[int, Ge(1), Unit("responses")] = 10_000
    """Horizon of `kl_controller=adaptive`: larger changes `kl_coef` more slowly."""

    kl_limit: Annotated[float, Gt(0), Unit("nats")] = 100.0
    """Stop the run when the mean KL of a rollout's responses is above this."""

    early_stop_kl: Annotated[float, Ge(0), Unit("nats")] = 0.0
    """Skip a rollout's remaining updates when the approximate KL per token from the policy that
    sampled it is above 1.5 times this; 0 never does."""

    def kl_problems(self) -> list[str]:
        """Contradictions among these keys, one line each."""
        found = []
        if self.kl_controller == "adaptive" and not self.kl_coef:
            found.append(
                "kl_coef: got 0.0 with kl_controller=adaptive, which multiplies it, so that it "
                "stays 0; need a number > 0. Try kl_coef=0.2"
            )
        if self.kl_in == "loss" and self.kl_coef and self.kl_estimator == "k1":
            found.append(
                "kl_estimator: got k1 with kl_in=loss, where its gradient is 0 on average and "
                "regularizes nothing; need k2 or k3. Try kl_estimator=k3"
            )
        adaptive = self.kl_controller == "adaptive"
        unused = dict.fromkeys(("kl_target", "kl_horizon"), adaptive)
        return found + unused_problems(self, unused, "kl_controller=adaptive")
