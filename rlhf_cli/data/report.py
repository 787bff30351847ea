"""Counts of the rows that were kept, refused, malformed or cut, and the errors that count them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from rlhf_cli.errors import DataError


class MalformedRow(Exception):
    """A row that breaks its format: broken JSON, a missing column, a wrong type."""


class RefusedRow(Exception):
    """A well-formed row that cannot be trained on; the message is the reason."""


MAX_SHOWN = 5
"""Maximum number of malformed rows, and of refusal reasons, in a message."""

PERCENTILES = (50, 90, 99, 100)


@dataclass
class ReasonCount:
    """Number of rows refused or changed for one reason, and the location of the first."""

    rows: int
    example: str


@dataclass
class CutCount:
    """Number of rows that lost tokens at one end, and of tokens lost."""

    rows: int = 0
    tokens: int = 0


@dataclass
class DataReport:
    """Counts of what was read, kept, refused and cut; written to the manifest as `to_dict`.

    Attributes:
        files: file names.
        skipped_files: names of files in the folder that are not data files.
        kind: record kind.
        sha256: fingerprint of the rows and of how they are read.
        rows: rows read.
        kept: rows that became examples.
        malformed: malformed rows.
        malformed_shown: the first malformed rows, each as `file:line: error`.
        refused: reason -> count of refused rows.
        unwritten: parts of messages that the chat template did not render.
        cut: `prompt start` or `response end` -> count of truncated rows.
        ignored_columns: columns that this kind of record does not use.
        notes: note -> count of kept rows that were changed, such as a response that was shortened.
        examples: examples, the unit of `train.batch_size`.
        tokens: tokens of all rows.
        trained_tokens: tokens where the loss mask is True.
        templated: whether the rows were rendered by the chat template.
        text_bytes: UTF-8 bytes of all documents, for bits per byte; 0 for other records.
        held_out: training rows held out for evaluation (`data.eval` as a share or number).
        sources: rows, held-out rows and sampled rows of each source, where these differ.
        lengths: percentile -> tokens per row.
        distinct: examples that differ in their tokens; 0 where they were not counted.
        labels: label -> rows, of stages that learn from labels.
    """

    files: tuple[str, ...] = ()
    skipped_files: tuple[str, ...] = ()
    kind: str = ""
    sha256: str = ""
    rows: int = 0
    kept: int = 0
    malformed: int = 0
    malformed_shown: list[str] = field(default_factory=list)
    refused: dict[str, ReasonCount] = field(default_factory=dict)
    unwritten: list[str] = field(default_factory=list)
    cut: dict[str, CutCount] = field(default_factory=dict)
    ignored_columns: list[str] = field(default_factory=list)
    notes: dict[str, ReasonCount] = field(default_factory=dict)
    examples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    templated: bool = False
    text_bytes: int = 0
    held_out: int = 0
    sources: list[dict[str, Any]] = field(default_factory=list)
    lengths: dict[str, int] = field(default_factory=dict)
    distinct: int = 0
    labels: dict[str, int] = field(default_factory=dict)

    def add_malformed(self, location: str, error: str) -> None:
        """Count a malformed row."""
        self.malformed += 1
        if len(self.malformed_shown) < MAX_SHOWN:
            self.malformed_shown.append(to_utf8(f"{location}: {error}"))

    def add_refused(self, location: str, reason: str) -> None:
        """Count a refused row."""
        self.refused.setdefault(to_utf8(reason), ReasonCount(0, location)).rows += 1

    def add_note(self, location: str, note: str) -> None:
        """Count a row that was kept with a change."""
        self.notes.setdefault(to_utf8(note), ReasonCount(0, location)).rows += 1

    def add_cut(self, end: str, tokens: int) -> None:
        """Count a row that lost tokens at one end."""
        if tokens:
            cuts = self.cut.setdefault(end, CutCount())
            cuts.rows += 1
            cuts.tokens += tokens

    def add_ignored(self, columns: Iterable[str]) -> None:
        """Add columns that are not read."""
        for name in map(to_utf8, columns):
            if name not in self.ignored_columns:
                self.ignored_columns.append(name)

    def set_length_percentiles(self, lengths: np.ndarray[Any, Any]) -> None:
        """Set `lengths` to percentiles of the row lengths."""
        found = np.percentile(lengths, PERCENTILES, method="higher")
        self.lengths = {str(p): int(v) for p, v in zip(PERCENTILES, found, strict=True)}

    def require_few_malformed(self, max_bad_rows: int) -> None:
        """Require at most `data.max_bad_rows` malformed rows.

        Raises:
            DataError: there are more; lists the first of them.
        """
        if self.malformed <= max_bad_rows:
            return
        not_shown = self.malformed - len(self.malformed_shown)
        advice = "repair them, or name their columns with data.columns"
        if self.malformed < self.rows:
            advice = f"repair them, or leave them out with data.max_bad_rows={self.malformed}"
        head = f"{self.malformed} malformed of {pluralize(self.rows, 'row')}; {advice}"
        more = [f"  and {not_shown} more"] if not_shown else []
        shown = [f"  {line}" for line in self.malformed_shown]
        raise DataError("\n".join([head, *shown, *more]))

    def require_kept(self) -> None:
        """Require at least one kept row.

        Raises:
            DataError: there is none; lists the reasons.
        """
        if not self.kept:
            names = ", ".join(self.files)
            head = f"{names}: none of {pluralize(self.rows, 'row')} can be trained on"
            raise DataError("\n".join([head, *self.left_out_lines()]))

    def lines(self, role: str = "") -> list[str]:
        """Lines that are printed once the rows are tokenized.

        Args:
            role: `training`, `held-out`, or empty.
        """
        p = self.lengths
        rows = pluralize(self.rows, f"{role} row".lstrip())
        return [
            f"{', '.join(self.files)}: {self.kept} of {rows} ({self.kind}), "
            f"{pluralize(self.examples, 'example')}, {pluralize(self.tokens, 'token')}, "
            f"{self.trained_tokens} trained; row length {p['50']} median, {p['90']} p90, "
            f"{p['99']} p99, {p['100']} longest",
            *self.left_out_lines(),
            *[
                f"  {end} cut: {pluralize(cuts.rows, 'row')}, {pluralize(cuts.tokens, 'token')}"
                for end, cuts in self.cut.items()
            ],
            *self._source_lines(),
            *self.note_lines(),
            *_list_line("columns not read", self.ignored_columns),
            *_list_line("files not read", self.skipped_files),
        ]

    def _source_lines(self) -> list[str]:
        return [
            f"  {source['path']}, weight {source['weight']:g}: {pluralize(source['drawn'], 'row')} "
            f"sampled of {source['rows']}, {source['held_out']} held out"
            for source in self.sources
        ]

    def note_lines(self) -> list[str]:
        """Lines about kept rows: their changes, and what the chat template did not render."""
        noted = [
            f"  {pluralize(found.rows, 'row')}: {note}; the first is {found.example}"
            for note, found in self.notes.items()
        ]
        unwritten = map(to_utf8, self.unwritten)
        return [*noted, *_list_line("not written by the chat template", unwritten)]

    def left_out_lines(self) -> list[str]:
        """Lines about refused and malformed rows: the count and first row of each reason."""
        refused = [
            f"  refused: {pluralize(found.rows, 'row')}, {reason}; the first is {found.example}"
            for reason, found in list(self.refused.items())[:MAX_SHOWN]
        ]
        if len(self.refused) > MAX_SHOWN:
            refused.append(f"  and {len(self.refused) - MAX_SHOWN} more reasons")
        if not self.malformed:
            return refused
        first = self.malformed_shown[0]
        return [f"  malformed: {pluralize(self.malformed, 'row')}; the first is {first}", *refused]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, for the manifest and the cache."""
        found = asdict(self)
        return {**found, "files": list(self.files), "skipped_files": list(self.skipped_files)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataReport:
        """Restore a report from `to_dict`."""
        report = cls(**values)
        report.files, report.skipped_files = tuple(report.files), tuple(report.skipped_files)
        for name in ("refused", "notes"):
            by_text = {text: ReasonCount(**found) for text, found in values[name].items()}
            setattr(report, name, by_text)
        report.cut = {end: CutCount(**found) for end, found in values["cut"].items()}
        return report


def to_utf8(text: str) -> str:
    """Escape lone surrogates, which UTF-8 cannot encode."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def pluralize(number: int, unit: str) -> str:
    """Format a number with its unit: `1 row`, `2 rows`."""
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def _list_line(head: str, names: Iterable[str]) -> list[str]:
    listed = ", ".join(names)
    return [f"  {head}: {listed}"] if listed else []
