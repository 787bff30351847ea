from dataclasses import dataclass
from typing import Annotated, Literal

from rlhf_cli.config.schema import Ge, Unit


@dataclass(kw_only=True)
class ResponsesConfig:
    """How the responses of a rollout are written, scored and logged."""

    template: Literal["auto", "always", "never"] = "auto"
    """Whether a text prompt becomes a user message in the chat template. `auto`: as in the data
    that the model was trained on."""

    max_num_seqs: Annotated[int, Ge(0), Unit("responses")] = 0
    """Responses decoded at once by a process; the KV cache has a slot as long as the longest
    prompt and response for each. Has no effect on responses but by rounding. 0 takes 64, or fewer
    where the cache does not fit the memory."""

    rollout_logprobs: Literal["recompute", "reuse"] = "recompute"
    """Source of the old log-probs: `recompute` computes them again as the updates do, so that the
    first ratio is 1; `reuse` keeps the sampler's, which saves that forward pass, and logs the
    mismatch."""

    missing_eos_penalty: Annotated[float, Ge(0)] = 0.0
    """Subtracted from the score of a response that did not end by itself."""

    allow_truncated_sampling: bool = False
    """Allow `top_k`, `top_p`, `min_p` and `min_new_tokens`, although the log-probs of the updates
    are those of the whole distribution."""

    sample_steps: Annotated[int, Ge(0), Unit("rollouts")] = 10
    """Log some responses with score and KL, also to `samples.jsonl`, every this many steps; 0 never
    does."""

    compat: Literal["none", "trl"] = "none"
    """`trl` puts the score after the end token, as TRL 1.12 does; for comparisons."""

    @property
    def reuses_logprobs(self) -> bool:
        """Whether the sampler's log-probs are the old log-probs."""
        return self.rollout_logprobs == "reuse"
