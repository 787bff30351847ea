"""What became of the rows: counted by reason, with an example of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from rlhf_cli.errors import DataError


class Malformed(Exception):
    """The row breaks its format: broken JSON, a missing column, a wrong type."""


class Refused(Exception):
    """The row is well formed, but there is nothing to learn from it; the message is the reason."""


SHOWN = 5
"""Malformed rows, and reasons of refusal, that a message lists."""


PERCENTILES = (50, 90, 99, 100)


@dataclass
class Refusals:
    """How many rows were refused or changed for one reason, and where the first stands."""

    rows: int
    example: str


@dataclass
class Cuts:
    """How many rows lost tokens at one end, and how many tokens."""

    rows: int = 0
    tokens: int = 0


@dataclass
class DataReport:
    """What was read, kept, refused and cut.

    Attributes:
        files: names of the files.
        skipped_files: names in the folder that are of another kind.
        kind: of the records.
        sha256: of the files' names and bytes.
        rows: all that were read.
        kept: rows that became examples.
        malformed: tolerated rows.
        malformed_shown: the first of them, `file:line: what`.
        refused: by reason.
        unwritten: what the chat template did not write of messages.
        cut: by the end that lost tokens.
        ignored_columns: columns that no record of this kind has.
        notes: what was done to rows that were kept, as what is behind a response being cut off.
        examples: what `train.batch_size` counts.
        tokens: of all rows.
        trained_tokens: those that are targets.
        templated: the rows went through the chat template.
        held_out: training rows that were kept for evaluation (`data.eval` as a share or number).
        sources: of each source its rows, those held out and those drawn, where they differ.
        text_bytes: of all documents in UTF-8, for bits per byte; 0 for other records.
        lengths: percentile -> tokens of a row.
    """

    files: tuple[str, ...] = ()
    skipped_files: tuple[str, ...] = ()
    kind: str = ""
    sha256: str = ""
    rows: int = 0
    kept: int = 0
    malformed: int = 0
    malformed_shown: list[str] = field(default_factory=list)
    refused: dict[str, Refusals] = field(default_factory=dict)
    unwritten: list[str] = field(default_factory=list)
    cut: dict[str, Cuts] = field(default_factory=dict)
    ignored_columns: list[str] = field(default_factory=list)
    notes: dict[str, Refusals] = field(default_factory=dict)
    examples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    templated: bool = False
    text_bytes: int = 0
    held_out: int = 0
    sources: list[dict[str, Any]] = field(default_factory=list)
    lengths: dict[str, int] = field(default_factory=dict)

    def add_malformed(self, where: str, what: str) -> None:
        """Count a row that breaks its format."""
        self.malformed += 1
        if len(self.malformed_shown) < SHOWN:
            self.malformed_shown.append(writable(f"{where}: {what}"))

    def add_refused(self, where: str, reason: str) -> None:
        """Count a row from which there is nothing to learn."""
        self.refused.setdefault(writable(reason), Refusals(0, where)).rows += 1

    def add_note(self, where: str, note: str) -> None:
        """Count a row that was kept, but not as it stands."""
        self.notes.setdefault(writable(note), Refusals(0, where)).rows += 1

    def add_cut(self, end: str, tokens: int) -> None:
        """Count the tokens that a row lost at one end."""
        if tokens:
            cuts = self.cut.setdefault(end, Cuts())
            cuts.rows += 1
            cuts.tokens += tokens

    def add_ignored(self, columns: Iterable[str]) -> None:
        """Remember columns that are not read."""
        for name in map(writable, columns):
            if name not in self.ignored_columns:
                self.ignored_columns.append(name)

    def measure(self, lengths: np.ndarray[Any, Any]) -> None:
        """Percentiles of the rows' lengths."""
        found = np.percentile(lengths, PERCENTILES, method="higher")
        self.lengths = {str(p): int(v) for p, v in zip(PERCENTILES, found, strict=True)}

    def require_few_malformed(self, most: int) -> None:
        """Stop where more rows are malformed than `data.max_bad_rows`.

        Raises:
            DataError: lists the first of them.
        """
        if self.malformed <= most:
            return
        left = self.malformed - len(self.malformed_shown)
        advice = "repair them, or name their columns with data.columns"
        if self.malformed < self.rows:
            advice = f"repair them, or leave them out with data.max_bad_rows={self.malformed}"
        head = f"{self.malformed} malformed of {count(self.rows, 'row')}; {advice}"
        more = [f"  and {left} more"] if left else []
        shown = [f"  {line}" for line in self.malformed_shown]
        raise DataError("\n".join([head, *shown, *more]))

    def require_kept(self) -> None:
        """Stop where no row is left.

        Raises:
            DataError: says why each was left out.
        """
        if not self.kept:
            names = ", ".join(self.files)
            head = f"{names}: none of {count(self.rows, 'row')} can be trained on"
            raise DataError("\n".join([head, *self.left_out()]))

    def lines(self, role: str = "") -> list[str]:
        """For printing.

        Args:
            role: what the rows are for, `training` or `held-out`; empty where that is clear.
        """
        p = self.lengths
        rows = count(self.rows, f"{role} row".lstrip())
        return [
            f"{', '.join(self.files)}: {self.kept} of {rows} ({self.kind}), "
            f"{count(self.examples, 'example')}, {count(self.tokens, 'token')}, "
            f"{self.trained_tokens} trained; row length {p['50']} median, {p['90']} p90, "
            f"{p['99']} p99, {p['100']} longest",
            *self.left_out(),
            *[
                f"  {end} cut: {count(cuts.rows, 'row')}, {count(cuts.tokens, 'token')}"
                for end, cuts in self.cut.items()
            ],
            *self._drawn(),
            *self.remarks(),
            *_named("columns not read", self.ignored_columns),
            *_named("files not read", self.skipped_files),
        ]

    def _drawn(self) -> list[str]:
        return [
            f"  {source['path']}, weight {source['weight']:g}: {count(source['drawn'], 'row')} "
            f"drawn of {source['rows']}, {source['held_out']} held out"
            for source in self.sources
        ]

    def remarks(self) -> list[str]:
        """Of rows that were kept: what was done with them, and what the template did not write."""
        noted = [
            f"  {count(found.rows, 'row')}: {note}; the first is {found.example}"
            for note, found in self.notes.items()
        ]
        return [*noted, *_named("not written by the chat template", map(writable, self.unwritten))]

    def left_out(self) -> list[str]:
        """Of refused and malformed rows: how many for each reason, and the first."""
        refused = [
            f"  refused: {count(found.rows, 'row')}, {reason}; the first is {found.example}"
            for reason, found in list(self.refused.items())[:SHOWN]
        ]
        if len(self.refused) > SHOWN:
            refused.append(f"  and {len(self.refused) - SHOWN} more reasons")
        if not self.malformed:
            return refused
        first = self.malformed_shown[0]
        return [f"  malformed: {count(self.malformed, 'row')}; the first is {first}", *refused]

    def to_dict(self) -> dict[str, Any]:
        """JSON values, for the manifest and the cache."""
        found = asdict(self)
        return {**found, "files": list(self.files), "skipped_files": list(self.skipped_files)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataReport:
        """The report that `to_dict` was taken of."""
        report = cls(**values)
        report.files, report.skipped_files = tuple(report.files), tuple(report.skipped_files)
        for name in ("refused", "notes"):
            by_text = {text: Refusals(**found) for text, found in values[name].items()}
            setattr(report, name, by_text)
        report.cut = {end: Cuts(**found) for end, found in values["cut"].items()}
        return report


def writable(text: str) -> str:
    """Text from a file as UTF-8 can hold it: half a surrogate pair becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def count(number: int, unit: str) -> str:
    """A number with its unit: `1 row`, `2 rows`."""
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def _named(head: str, names: Iterable[str]) -> list[str]:
    listed = ", ".join(names)
    return [f"  {head}: {listed}"] if listed else []
