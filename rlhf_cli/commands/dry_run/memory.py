"""Memory of a dry run: the table, and overrides where it does not fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_cli.commands.dry_run.section import Section
from rlhf_cli.memory.advice import Override, cheapest_overrides
from rlhf_cli.memory.device import Device
from rlhf_cli.memory.estimate import estimate_memory
from rlhf_cli.memory.parts import Estimate, Rows
from rlhf_cli.memory.table import format_bytes, format_estimate


@dataclass(frozen=True)
class MemoryReport:
    """Estimate of a command's memory on a device, and what to do where it does not fit."""

    estimate: Estimate
    rows: Rows
    device: Device
    advice: list[Override]

    @classmethod
    def of(
        cls, command: str, cfg: Any, rows: Rows, device: Device, processes: int = 1
    ) -> MemoryReport:
        """Estimate the memory of a command.

        Raises:
            ConfigError: a model is not here.
        """
        estimate = estimate_memory(command, cfg, rows, device, processes=processes)
        advice = (
            []
            if estimate.fits
            else cheapest_overrides(command, cfg, rows, device, processes=processes)
        )
        return cls(estimate, rows, device, advice)

    def section(self) -> Section:
        """The table, and up to three overrides."""
        phase, peak = self.estimate.peak
        facts = {
            "phases": {name: dict(parts) for name, parts in self.estimate.phases.items()},
            "peak_phase": phase,
            "peak_bytes": peak,
            "usable_bytes": self.estimate.usable,
            "fits": self.estimate.fits,
            "micro_batch_tokens": self.estimate.micro_batch_tokens,
            "overrides": [
                {"override": one.text, "saves_bytes": one.saves_bytes, "cost": one.cost}
                for one in self.advice
            ],
        }
        table = format_estimate(self.estimate, self.device).removeprefix("memory: ")
        return Section("memory", facts=facts, block="\n".join([table, *self._advice_lines()]))

    def _advice_lines(self) -> list[str]:
        if self.estimate.fits:
            return []
        if not self.advice:
            return ["Nothing that could be changed here needs less. Try a smaller model"]
        head = "It does not fit; what needs less, the cheapest first:"
        return [head, *(_advice_line(one) for one in self.advice)]


def _advice_line(one: Override) -> str:
    fits = "then it fits" if one.fits else "which alone is not enough"
    return f"  {one.text}  saves {format_bytes(one.saves_bytes)}, {fits}; {one.cost}"
