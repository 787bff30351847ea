"""Warnings about symptoms of reward hacking, during the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_cli.console import logger
from rlhf_cli.diagnosis.rollouts import BASELINE_ROLLOUTS, symptoms

REPEAT_AFTER = 20
"""Rollouts after which a warning is repeated."""


class RewardHackingMonitor:
    """Compares each rollout with the first ones by the rules of the diagnosis, and warns.

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
            now: means over the rollout, as in `diagnosis.rollouts.Rollout`.

        Returns:
            The warnings printed, without those of the last `REPEAT_AFTER` rollouts.
        """
        self.seen += 1
        if self.seen <= BASELINE_ROLLOUTS:
            for name, value in now.items():
                before = self.first.get(name, 0.0)
                self.first[name] = before + (value - before) / self.seen
        found = [one for one in symptoms(self.first, now) if self._is_due(one.code)]
        for one in found:
            self.warned[one.code] = self.seen
            logger.info(f"warning: rollout {self.seen}: {one.text}")
        return [one.text for one in found]

    def _is_due(self, name: str) -> bool:
        return name not in self.warned or self.seen - self.warned[name] >= REPEAT_AFTER

    def state_dict(self) -> dict[str, Any]:
        """State as JSON values."""
        return {"seen": self.seen, "first": self.first, "told": self.warned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.seen, self.first = state["seen"], dict(state["first"])
        self.warned = dict(state["told"])
