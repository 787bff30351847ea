"""Findings of the diagnosis of a run, and their text."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rlhf_cli.console import shorten

Severity = Literal["problem", "warning", "note", "ok"]

ORDER: tuple[Severity, ...] = ("problem", "warning", "note", "ok")
"""The worst first."""

MAX_CHARS = 600
"""Length of a sentence in the terminal; errors of a run may hold whole tracebacks."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one rule says about a run.

    Attributes:
        code: name of the rule, as in `ppo.length`; it stays the same between versions.
        severity: `problem`, the result is not what was asked for; `warning`, look at it; `note`;
            `ok`, checked and unremarkable.
        sentence: what happened, with its numbers.
        cause: why, where it can be named; else empty.
        advice: overrides to try next, as in `train.lr=1e-06`, the most promising first.
        numbers: the numbers behind the sentence, by name.
    """

    code: str
    severity: Severity
    sentence: str
    cause: str = ""
    advice: tuple[str, ...] = ()
    numbers: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "advice": list(self.advice)}

    @property
    def text(self) -> str:
        """Sentence, cause and advice as one line without control characters."""
        parts = [self.sentence, self.cause]
        if self.advice:
            parts.append(f"Try {' or '.join(self.advice)}.")
        line = " ".join(" ".join(part.split()) for part in parts if part)
        return shorten(line, MAX_CHARS)


def of_severity(findings: Sequence[Finding], *severities: Severity) -> list[Finding]:
    """Select findings, the worst first."""
    kept = [one for one in findings if one.severity in severities]
    return sorted(kept, key=lambda one: ORDER.index(one.severity))


def summary(findings: Sequence[Finding]) -> str:
    """The first line about a run: how many problems and warnings in how many checks."""
    counts = {name: len(of_severity(findings, name)) for name in ("problem", "warning")}
    found = [
        f"{count} {name}{'' if count == 1 else 's'}"
        for name, count in (("problem", counts["problem"]), ("warning", counts["warning"]))
        if count
    ]
    checks = f"{len(findings)} {'check' if len(findings) == 1 else 'checks'}"
    return f"{' and '.join(found) or 'no problem'} found in {checks}"


def short_lines(findings: Sequence[Finding]) -> list[str]:
    """Lines for the end of a training log: problems and warnings, or one line without them."""
    worst = of_severity(findings, "problem", "warning")
    return [
        f"diagnosis: {summary(findings)}",
        *(f"  {one.severity}: {one.text} [{one.code}]" for one in worst),
    ]
