"""Steps whose loss rose suddenly, recorded in `spikes.jsonl` with their rows."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rlhf_cli.console import logger
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.equal_passes import equal_passes
from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.runs import lock
from rlhf_cli.runs.run_files import (
    SPIKES,
    append_json_lines,
    format_json_lines,
    read_json_lines,
    write_text_atomic,
)

WINDOW = 32
"""Steps that a loss is compared with."""

MIN_STEPS = 12
"""Steps before the first comparison."""

DEVIATIONS = 6.0
"""Standard deviations, by the median absolute deviation, above the median."""

FACTOR = 1.5
"""Factor above the median."""

FLOOR = 0.05
"""Share of the first loss that the rise must exceed: near 0 every factor is small."""

_DEVIATION_OF_NORMAL = 1.4826
"""Standard deviation of a normal distribution per median absolute deviation."""

LOGGED_ROWS = 5
"""Rows of a spike that are logged; the file has all of them."""


class SpikeLog:
    """Finds sudden losses, and records the rows of the step; changes nothing of the training.

    Args:
        folder: of the run.
        locate: rows of one example -> `file:line`.
        measure: rows of one example -> their loss, without gradient and dropout.
        ranks: share the rows of a step; all call `check` together, with the same loss.
    """

    def __init__(
        self,
        folder: Path,
        locate: Callable[[TokenBatch], str],
        measure: Callable[[TokenBatch], float],
        ranks: Ranks,
    ) -> None:
        self.path, self.locate, self.measure = folder / SPIKES, locate, measure
        self.ranks = ranks
        self.recent: list[float] = []
        self.first = 0.0

    def check(self, step: int, loss: float, batches: Sequence[TokenBatch]) -> bool:
        """Compare the loss of a step with those before it.

        Args:
            step: number of the step, from 1.
            loss: of the whole step over all ranks.
            batches: this rank's micro-batches of the step.

        Returns:
            Whether it is a spike.

        Raises:
            CheckpointError: the file cannot be written.
        """
        before = median(self.recent) if self.recent else loss
        found = len(self.recent) >= MIN_STEPS and self._is_spike(loss, before)
        self.first = self.first or loss
        self.recent = [*self.recent, loss][-WINDOW:]
        if found:
            self._record(step, loss, before, batches)
        return found

    def _is_spike(self, loss: float, before: float) -> bool:
        spread = median(abs(value - before) for value in self.recent) * _DEVIATION_OF_NORMAL
        rise = loss - before
        needed = max(DEVIATIONS * spread, (FACTOR - 1) * abs(before), FLOOR * abs(self.first))
        return rise > needed

    def _record(self, step: int, loss: float, before: float, batches: Sequence[TokenBatch]) -> None:
        examples = [example for rows in batches for example in rows.split()]
        passes = equal_passes(examples, self.ranks)
        measured = [(example, -self._measured(example)) for example in passes]
        own = [(loss, self.locate(example)) for example, loss in measured if not example.is_filler]
        every: list[tuple[float, str]] = [
            (negative, place)
            for part in self.ranks.data.all_gather_json(own)
            for negative, place in part
        ]
        gathered = sorted(every)
        places = [place for _, place in gathered]
        if not self.ranks.is_main:
            return
        lock.require_owned(self.path.parent)
        losses = [-negative for negative, _ in gathered]
        line = {"step": step, "loss": loss, "before": before, "rows": places, "losses": losses}
        append_json_lines(self.path, [line])
        more = f" and {len(places) - LOGGED_ROWS} more" if len(places) > LOGGED_ROWS else ""
        logger.info(
            f"warning: step {step}: the loss is {loss:.4g}, {before:.4g} in the steps before; "
            f"its rows, the highest loss first: {', '.join(places[:LOGGED_ROWS])}{more} "
            f"(all in {SPIKES})"
        )

    def _measured(self, example: TokenBatch) -> float:
        """The example's loss; a very large number where it is not finite, which JSON has not."""
        found = self.measure(example)
        return found if math.isfinite(found) else sys.float_info.max

    def truncate(self, step: int) -> None:
        """Remove records after a step, for a run that continues at its checkpoint."""
        if self.ranks.is_main and self.path.exists():
            kept = [line for line in read_json_lines(self.path) if line["step"] <= step]
            write_text_atomic(self.path, format_json_lines(kept))

    def state_dict(self) -> dict[str, Any]:
        """State as JSON values."""
        return {"recent": self.recent, "first": self.first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; empty in a checkpoint of an older version."""
        self.recent, self.first = list(state.get("recent", [])), state.get("first", 0.0)
