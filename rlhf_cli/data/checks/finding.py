"""What a check of a data file finds: a fault or a fact, the rows that show it, and what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rlhf_cli.console import shorten
from rlhf_cli.data.checks.secret_patterns import mask_secrets

Severity = Literal["error", "warning", "note"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""The gravest first. An error is what a run refuses, or what makes its result useless; a warning is
what most likely harms it; a note is a fact to know."""

MAX_EXAMPLES = 3
EXCERPT = 80
"""Characters of a text that are shown of one example."""


@dataclass(frozen=True)
class FoundAt:
    """One example of a finding.

    Attributes:
        location: `file:line`.
        text: short text without control characters and secrets; may be empty.
    """

    location: str
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found.

    Attributes:
        code: stable name in kebab-case, which `ignore=` takes.
        severity: `error`, `warning` or `note`.
        message: what was found; a clause.
        count: number of units it was found in; 0 if it is about the file or the model as a whole.
        total: number of units that were examined.
        unit: what is counted, in the singular.
        examples: at most `MAX_EXAMPLES`.
        advice: what to do, with the key to set; a sentence without a full stop.
    """

    code: str
    severity: Severity
    message: str
    count: int = 0
    total: int = 0
    unit: str = "row"
    examples: tuple[FoundAt, ...] = ()
    advice: str = ""

    @property
    def share(self) -> float:
        """Share of the examined units; 0 if nothing was counted."""
        return self.count / self.total if self.total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "share": self.share}


@dataclass
class Tally:
    """Counts the rows that show a fault, and keeps the first of them as examples."""

    count: int = 0
    examples: list[FoundAt] = field(default_factory=list)
    _last: str = ""

    def add(self, location: str, text: str = "") -> None:
        """Count a row, once for all of its texts that show the fault one after the other."""
        if location == self._last:
            return
        self._last = location
        self.count += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(FoundAt(location, text))

    def report(
        self,
        code: str,
        severity: Severity,
        message: str,
        total: int,
        *,
        advice: str = "",
        unit: str = "row",
    ) -> list[Finding]:
        """Return the finding; nothing if no row was counted."""
        if not self.count:
            return []
        return [
            Finding(
                code=code,
                severity=severity,
                message=message,
                count=self.count,
                total=total,
                unit=unit,
                examples=tuple(self.examples),
                advice=advice,
            )
        ]


def excerpt(text: str, at: int | None = None, max_characters: int = EXCERPT) -> str:
    """Return a short piece of a text on one line, without secrets and control characters.

    Args:
        text: any text.
        at: index around which to cut; None keeps both ends.
        max_characters: length of the piece, before control characters are escaped.
    """
    masked = mask_secrets(text) if at is None else text
    if at is not None:
        start = max(0, at - max_characters // 2)
        masked = mask_secrets(text[max(0, start - 200) : start + max_characters + 200])
        offset = min(start, 200)
        masked = masked[offset : offset + max_characters]
    one_line = masked.replace("\r", "\\r").replace("\n", "\\n").replace("\t", "\\t")
    return shorten(one_line, max_characters if at is None else len(one_line))
