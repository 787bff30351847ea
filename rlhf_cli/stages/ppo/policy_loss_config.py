from dataclasses import dataclass
from typing import Annotated, Literal

from rlhf_cli.config.schema import Ge, Gt, Unit
from rlhf_cli.config.values import unused_problems


@dataclass(kw_only=True)
class PolicyLossConfig:
    """The policy loss of PPO, and its entropy bonus."""

    policy_loss: Literal["ppo", "cispo"] = "ppo"
    """`ppo` is the clipped surrogate (arXiv:1707.06347); `cispo` weights log-probs by the clipped
    ratio, so that no token loses its gradient (arXiv:2506.13585)."""

    clip_range: Annotated[float, Gt(0)] = 0.2
    """Clip range ε of the policy ratio (arXiv:1707.06347)."""

    clip_range_high: Annotated[float, Ge(0)] = 0.0
    """Upper clip range ε_high, where the ratio may rise further than it may fall, as 0.28 in DAPO
    (arXiv:2503.14476); 0 takes `clip_range`. `policy_loss=cispo` has this limit only."""

    dual_clip: Annotated[float, Ge(0)] = 0.0
    """Limit c > 1 of the ratio of tokens with a negative advantage, as 3 (arXiv:1912.09729); 0 is
    off."""

    ratio: Literal["token", "sequence", "sequence_token"] = "token"
    """Policy ratio of each token; or of its whole response to the power of 1 / length (GSPO,
    arXiv:2507.18071, where clip ranges are near 3e-4), `sequence_token` with the gradient of each
    token by itself."""

    loss_aggregation: Literal["token", "sequence", "constant"] = "token"
    """Mean of the token losses: over all tokens of a minibatch (DAPO); over responses, of the means
    over their tokens (GRPO, arXiv:2402.03300); or their sum divided by responses times
    `sampling.max_new_tokens` (Dr. GRPO, arXiv:2503.20783)."""

    mask_truncated: bool = False
    """No policy loss on responses that the length limit cut off (DAPO, arXiv:2503.14476)."""

    entropy_coef: Annotated[float, Ge(0)] = 0.0
    """Coefficient of the entropy bonus, which is subtracted from the loss per nat."""

    entropy_target: Annotated[float, Ge(0), Unit("nats per token")] = 0.0
    """Entropy that the bonus holds: its coefficient starts at `entropy_coef`, rises while the
    entropy is below this, and falls while it is above (arXiv:2505.22312); 0 keeps it fixed."""

    entropy_step: Annotated[float, Gt(0)] = 0.005
    """Change of the coefficient per rollout with `entropy_target`."""

    @property
    def clip_high(self) -> float:
        """Upper clip range ε_high."""
        return self.clip_range_high or self.clip_range

    @property
    def has_entropy_bonus(self) -> bool:
        """Whether the entropy is part of the loss, now or later in the run."""
        return bool(self.entropy_coef or self.entropy_target)

    def policy_loss_problems(self) -> list[str]:
        """Contradictions among these keys, one line each."""
        found = []
        if 0 < self.dual_clip <= 1:
            found.append(
                f"dual_clip: got {self.dual_clip:g}, at which tokens with a negative advantage "
                "have no gradient from the start; need more than 1, or 0. Try dual_clip=3"
            )
        ppo = self.policy_loss == "ppo"
        found += unused_problems(self, {"dual_clip": ppo}, "policy_loss=ppo")
        found += self._cispo_problems()
        used = {"entropy_step": bool(self.entropy_target)}
        return found + unused_problems(self, used, "entropy_target")

    def _cispo_problems(self) -> list[str]:
        """With `cispo` the lower limit is not read, and the upper one may come from either key."""
        if self.policy_loss == "ppo":
            return []
        found = []
        if self.clip_range_high:
            found += unused_problems(self, {"clip_range": False}, "policy_loss=ppo")
        if self.ratio == "sequence_token":
            found.append(
                "ratio: got sequence_token with policy_loss=cispo, which takes no gradient of the "
                "ratio. Try ratio=sequence"
            )
        return found
