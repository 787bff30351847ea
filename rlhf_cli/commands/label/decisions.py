"""Decisions about items, the rows that they become, and the file that they are appended to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_cli.commands.label.config import ties_file
from rlhf_cli.commands.label.items import ITEM, Item
from rlhf_cli.data.records.fields import prompt_to_json
from rlhf_cli.data.records.types import COLUMNS
from rlhf_cli.data.report import MalformedRow
from rlhf_cli.data.sources.files import read_rows
from rlhf_cli.errors import DataError
from rlhf_cli.runs.appended_rows import append_row, remove_row, require_appendable, timestamp

Row = dict[str, Any]

KIND_COLUMNS = {
    "pair": {"prompt", "chosen", "rejected"},
    "ranking": {"prompt", "responses", "scores"},
    "answer": {"prompt", "completion", "label"},
}
"""Columns of the rows of each kind."""

_TIE_COLUMNS = {"prompt", "responses"}


@dataclass(frozen=True)
class Written:
    """A decision in a file."""

    item: Item
    path: Path
    line: bytes


class DecisionFile:
    """Appends decisions, and knows those of earlier commands.

    Args:
        target: file of the rows.
        rater: whose decisions are written; those of others do not count as done.
        items: what is to be decided.

    Attributes:
        done: hashes of the items that the rater has decided.

    Raises:
        DataError: the file cannot be written, is damaged, or holds other rows.
    """

    def __init__(self, target: Path, rater: str, items: Sequence[Item]) -> None:
        self.target, self.ties, self.rater = target, ties_file(target), rater
        require_appendable(target)
        require_appendable(self.ties)
        columns = KIND_COLUMNS[items[0].kind]
        decided = [*self._decided(target, columns), *self._decided(self.ties, _TIE_COLUMNS)]
        self.done = {item.key for item in items} & set(decided)
        self.written: list[Written] = []

    def _decided(self, path: Path, columns: set[str]) -> list[str]:
        """Hashes of the items that the rater has decided in a file."""
        if not path.exists():
            return []
        found = []
        for raw in read_rows([path]):
            try:
                row = raw.columns()
            except MalformedRow as error:
                raise DataError(
                    f"output: {path}:{raw.line}: {error}. Remove that line, or take another output"
                ) from None
            if not columns <= set(row):
                raise DataError(
                    f"output: {path}:{raw.line} has the columns {', '.join(sorted(row))}; rows "
                    f"with {', '.join(sorted(columns))} are to be appended. Need another output"
                )
            if row.get("rater") == self.rater:
                found.append(str(row.get(ITEM)))
        return found

    def add(self, item: Item, scores: Sequence[float]) -> None:
        """Append a decision.

        Args:
            item: what was decided.
            scores: of its answers in the order of the item, higher is better; of a single answer
                1 is good, 0 bad.

        Raises:
            DataError: the file cannot be written.
        """
        tie = len(scores) > 1 and len({*scores}) == 1
        path = self.ties if tie else self.target
        others = {k: v for k, v in item.columns.items() if k not in (*COLUMNS, "rater", "time")}
        row = {**others, **to_row(item, scores), ITEM: item.key}
        line = append_row(path, {**row, "time": timestamp(), "rater": self.rater})
        self.written.append(Written(item, path, line))
        self.done.add(item.key)

    def undo(self) -> Item | None:
        """Remove the last decision since the start; returns its item, or None if there is none.

        Raises:
            DataError: the file cannot be written.
        """
        if not self.written:
            return None
        last = self.written.pop()
        remove_row(last.path, last.line)
        self.done.discard(last.item.key)
        return last.item


def to_row(item: Item, scores: Sequence[float]) -> Row:
    """The columns of a decision in the layout of its kind; a tie has `responses` alone."""
    answers = [prompt_to_json(answer) for answer in item.answers]
    prompt = {"prompt": prompt_to_json(item.prompt)}
    if item.kind == "answer":
        return {**prompt, "completion": answers[0], "label": bool(scores[0])}
    if len({*scores}) == 1:
        return {**prompt, "responses": answers}
    if item.kind == "pair":
        better = max(range(2), key=lambda index: scores[index])
        return {**prompt, "chosen": answers[better], "rejected": answers[1 - better]}
    return {**prompt, "responses": answers, "scores": list(scores)}
