"""Classic signs that a policy games its reward, told with their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_cli.console import logger

FIRST = 5
"""Rollouts that later ones are compared with."""

QUIET = 20
"""Rollouts in which a sign is not told again."""

LEAST_ENTROPY = 0.25
"""Of what it was at first: under this, responses have little left to vary."""

LENGTH_DRIFT = 2.0
"""Times longer or shorter than at first."""

LEAST_ENDED = 0.5
"""Of the share that ended by themselves at first."""

LEAST_DISTINCT = 0.25
"""Share of different responses."""


class Signs:
    """Compares each rollout with the first ones.

    `look` is given means over a rollout: `score`, `entropy` (nats a token), `length` (tokens),
    `ended` and `distinct` (shares), `deviation` of the scores.
    """

    def __init__(self) -> None:
        self.seen = 0
        self.first: dict[str, float] = {}
        self.told: dict[str, int] = {}

    def look(self, now: Mapping[str, float]) -> list[str]:
        """The signs of a rollout in words, those told lately left out; they are printed too."""
        self.seen += 1
        if self.seen <= FIRST:
            for name, value in now.items():
                before = self.first.get(name, 0.0)
                self.first[name] = before + (value - before) / self.seen
        found = {name: text for name, text in self._signs(now).items() if self._is_news(name)}
        for name, text in found.items():
            self.told[name] = self.seen
            logger.info(f"warning: rollout {self.seen}: {text}")
        return list(found.values())

    def _is_news(self, name: str) -> bool:
        return name not in self.told or self.seen - self.told[name] >= QUIET

    def _signs(self, now: Mapping[str, float]) -> dict[str, str]:
        first, found = self.first, {}
        if now["ended"] == 0:
            found["ended"] = (
                "no response ended by itself; the policy has not learned to stop, or "
                "sampling.max_new_tokens is too short. See missing_eos_penalty"
            )
        elif now["ended"] < LEAST_ENDED * first["ended"]:
            found["ended"] = (
                f"{now['ended']:.0%} of the responses ended by themselves, {first['ended']:.0%} at "
                "first; see missing_eos_penalty"
            )
        if now["score"] > first["score"] and now["entropy"] < LEAST_ENTROPY * first["entropy"]:
            found["entropy"] = (
                f"the score rose from {first['score']:.2f} to {now['score']:.2f} while the entropy "
                f"fell from {first['entropy']:.3f} to {now['entropy']:.3f} nats a token; a larger "
                "kl_coef or a smaller lr keeps more of it"
            )
        drift = now["length"] / max(first["length"], 1.0)
        if not 1 / LENGTH_DRIFT <= drift <= LENGTH_DRIFT:
            found["length"] = (
                f"responses have {now['length']:.0f} tokens, {first['length']:.0f} at first; does "
                "the reward go by length?"
            )
        if now["distinct"] <= LEAST_DISTINCT:
            found["distinct"] = f"only {now['distinct']:.0%} of the responses differ"
        if now["deviation"] == 0:
            found["deviation"] = (
                f"all scores are {now['score']:g}; there is nothing to learn from them"
            )
        return found

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"seen": self.seen, "first": self.first, "told": self.told}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.seen, self.first = state["seen"], dict(state["first"])
        self.told = dict(state["told"])
