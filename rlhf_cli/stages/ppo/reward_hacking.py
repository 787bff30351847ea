"""Warnings about symptoms of reward hacking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_cli.console import logger

BASELINE_ROLLOUTS = 5
"""First rollouts, whose means later ones are compared with."""

REPEAT_AFTER = 20
"""Rollouts after which a warning is repeated."""

MIN_ENTROPY = 0.25
"""Fraction of the baseline's entropy below which responses have little left to vary."""

LENGTH_DRIFT = 2.0
"""Factor by which responses may get longer or shorter than the baseline's."""

MIN_ENDED = 0.5
"""Fraction of the baseline's share of responses that ended by themselves."""

MIN_DISTINCT = 0.25
"""Share of distinct responses."""


class RewardHackingMonitor:
    """Compares each rollout with the first ones, and warns about symptoms of reward hacking.

    Attributes:
        seen: rollouts checked so far.
        first: means over the first `BASELINE_ROLLOUTS` rollouts.
        warned: the rollout in which each warning was last printed.
    """

    def __init__(self) -> None:
        self.seen = 0
        self.first: dict[str, float] = {}
        self.warned: dict[str, int] = {}

    def check(self, now: Mapping[str, float]) -> list[str]:
        """Check a rollout and print new warnings.

        Args:
            now: means over the rollout: `score`, `entropy` (nats per token), `length` (tokens),
                `ended` and `distinct` (shares), and `deviation` of the scores.

        Returns:
            The warnings printed, without those of the last `REPEAT_AFTER` rollouts.
        """
        self.seen += 1
        if self.seen <= BASELINE_ROLLOUTS:
            for name, value in now.items():
                before = self.first.get(name, 0.0)
                self.first[name] = before + (value - before) / self.seen
        found = {name: text for name, text in self._find(now).items() if self._is_due(name)}
        for name, text in found.items():
            self.warned[name] = self.seen
            logger.info(f"warning: rollout {self.seen}: {text}")
        return list(found.values())

    def _is_due(self, name: str) -> bool:
        return name not in self.warned or self.seen - self.warned[name] >= REPEAT_AFTER

    def _find(self, now: Mapping[str, float]) -> dict[str, str]:
        first, found = self.first, {}
        if now["ended"] == 0:
            found["ended"] = (
                "no response ended by itself; the policy has not learned to stop, or "
                "sampling.max_new_tokens is too short. See missing_eos_penalty"
            )
        elif now["ended"] < MIN_ENDED * first["ended"]:
            found["ended"] = (
                f"{now['ended']:.0%} of the responses ended by themselves, {first['ended']:.0%} at "
                "first; see missing_eos_penalty"
            )
        if now["score"] > first["score"] and now["entropy"] < MIN_ENTROPY * first["entropy"]:
            found["entropy"] = (
                f"the score rose from {first['score']:.2f} to {now['score']:.2f} while the entropy "
                f"fell from {first['entropy']:.3f} to {now['entropy']:.3f} nats per token; a larger"
                " kl_coef or a smaller lr preserves more of it"
            )
        drift = now["length"] / max(first["length"], 1.0)
        if not 1 / LENGTH_DRIFT <= drift <= LENGTH_DRIFT:
            found["length"] = (
                f"responses have {now['length']:.0f} tokens, {first['length']:.0f} at first; does "
                "the reward depend on length?"
            )
        if now["distinct"] <= MIN_DISTINCT:
            found["distinct"] = f"only {now['distinct']:.0%} of the responses are distinct"
        if now["deviation"] == 0:
            found["deviation"] = (
                f"all scores are {now['score']:g}; there is nothing to learn from them"
            )
        return found

    def state_dict(self) -> dict[str, Any]:
        """State as JSON values."""
        return {"seen": self.seen, "first": self.first, "told": self.warned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.seen, self.first = state["seen"], dict(state["first"])
        self.warned = dict(state["told"])
