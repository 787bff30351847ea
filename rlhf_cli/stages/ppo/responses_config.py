from dataclasses import dataclass
from typing import Annotated, Literal

from rlhf_cli.config.schema import Ge, Gt, Unit


@dataclass(kw_only=True)
class ResponsesConfig:
    """How the responses of a rollout become experience."""

    rollout_logprobs: Literal["recompute", "reuse"] = "recompute"
    """Source of the old log-probs: `recompute` computes them again as the updates do, so that the
    first ratio is 1; `reuse` keeps the sampler's, which saves that forward pass, and logs the
    mismatch."""

    missing_eos_penalty: Annotated[float, Ge(0)] = 0.0
    """Subtracted from the score of a response that did not end by itself."""

    overlong_buffer: Annotated[int, Ge(0), Unit("tokens")] = 0
    """Tokens before `sampling.max_new_tokens` over which a penalty grows from 0 to
    `overlong_penalty` (DAPO, arXiv:2503.14476); 0 has none."""

    overlong_penalty: Annotated[float, Gt(0)] = 1.0
    """Subtracted from the score of a response at the length limit, with `overlong_buffer`."""

    allow_truncated_sampling: bool = False
    """Allow `top_k`, `top_p`, `min_p` and `min_new_tokens`, although the log-probs of the updates
    are those of the whole distribution."""

    compat: Literal["none", "trl"] = "none"
    """`trl` puts the score after the end token, as TRL 1.12 does; for comparisons."""

    @property
    def reuses_logprobs(self) -> bool:
        """Whether the sampler's log-probs are the old log-probs."""
        return self.rollout_logprobs == "reuse"
