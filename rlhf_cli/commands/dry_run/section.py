"""Sections of a dry run's report, as text and as JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_cli.console import format_table, shorten


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        name: its heading, and its key in JSON.
        lines: label and text of each line; an empty label continues the one before.
        facts: the same as JSON values.
        block: text below the lines, as it is.
    """

    name: str
    lines: Sequence[tuple[str, str]] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    block: str = ""


def format_sections(head: str, sections: Sequence[Section]) -> str:
    """Format sections as text; labels are aligned over all of them."""
    rows = [(f"  {label}", _plain(text)) for each in sections for label, text in each.lines]
    lines = iter(format_table(rows).split("\n") if rows else [])
    parts = [head]  # a run that is complete has no sections
    for section in sections:
        body = [next(lines) for _ in section.lines]
        block = [f"  {line}".rstrip() for line in section.block.splitlines()]
        parts.append("\n".join([section.name, *body, *block]))
    return "\n\n".join(parts)


def _plain(text: str) -> str:
    """Escape control characters, which file names and rows may hold."""
    return shorten(text.replace("\n", "\\n"), len(text) + text.count("\n") + 1)


def section_values(command: str, sections: Sequence[Section]) -> dict[str, Any]:
    """The facts of all sections as JSON values; without sections the run is complete."""
    facts = {section.name: dict(section.facts) for section in sections}
    return {"command": command, "complete": not sections, **facts}


def format_count(number: float, *, exact: bool = True) -> str:
    """Format a number with separators; one that is estimated is rounded to three digits."""
    return f"{number:,.0f}" if exact else f"about {float(f'{number:.3g}'):,.0f}"


def format_flops(flops: float) -> str:
    """Format a number of FLOPs with a prefix: `3.4 TFLOP`, `0.57 EFLOP`."""
    for prefix, size in (("EFLOP", 1e18), ("PFLOP", 1e15)):
        if flops >= size:
            return f"{flops / size:,.3g} {prefix}"
    return f"{flops / 1e12:.3g} TFLOP"


def format_seconds(seconds: float) -> str:
    """Format a duration in its largest units: `12 s`, `3 min`, `5 h 20 min`, `2 d 3 h`."""
    if seconds < 90:
        return f"{max(seconds, 0.1):.2g} s" if seconds < 9.5 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 36:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
