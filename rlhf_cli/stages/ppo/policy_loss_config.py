from dataclasses import dataclass
from typing import Annotated

from rlhf_cli.config.schema import Gt


@dataclass(kw_only=True)
class PolicyLossConfig:
    """The policy loss of PPO."""

    clip_range: Annotated[float, Gt(0)] = 0.2
    """Clip range ε of the policy ratio (arXiv:1707.06347)."""
