"""Rows of a file as items to rate: a prompt and its answers, without what is known about them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rlhf_cli.commands.label.config import LabelConfig
from rlhf_cli.data.config import Columns, DataConfig, Format
from rlhf_cli.data.records.fields import Prompt, Response, prompt_to_json
from rlhf_cli.data.records.reader import RecordReader, RecordWithSource
from rlhf_cli.data.records.types import (
    ChatRecord,
    LabelledRecord,
    PreferenceRecord,
    PromptCompletionRecord,
    RankedRecord,
    ScoredRecord,
)
from rlhf_cli.data.report import DataReport
from rlhf_cli.data.sources.base import RawRow
from rlhf_cli.data.sources.files import find_data_files, read_rows
from rlhf_cli.errors import DataError
from rlhf_cli.resources import SHIPPED, shipped_rows

Kind = Literal["pair", "ranking", "answer"]

ITEM = "item"
"""Column with the hash of prompt and answers, by which a rated row is found again."""

_RECORDS = (
    PreferenceRecord,
    RankedRecord,
    LabelledRecord,
    ScoredRecord,
    PromptCompletionRecord,
    ChatRecord,
)


@dataclass(frozen=True)
class Item:
    """A prompt and the answers to rate.

    Attributes:
        kind: how it is rated.
        prompt: text or messages.
        answers: in the order of the file; of a pair the chosen one is first.
        location: `file:line`.
        known: the file's own scores of the answers, or None where it has none.
        columns: the row's other columns.
    """

    kind: Kind
    prompt: Prompt
    answers: tuple[Response, ...]
    location: str
    known: tuple[float, ...] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Hash of prompt and answers; the order of the answers does not count."""
        answers = sorted(to_json_text(answer) for answer in self.answers)
        content = json.dumps([to_json_text(self.prompt), answers])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def to_json_text(value: Prompt) -> str:
    """A prompt or answer as text by which equal ones are found."""
    return json.dumps(prompt_to_json(value), sort_keys=True)


def read_items(cfg: LabelConfig, report: DataReport) -> list[Item]:
    """Read the items of a file; of rows with the same content only the first.

    Raises:
        DataError: it is no regular file, or its rows have no answers.
    """
    path = shipped_rows("reward", "test") if cfg.file == SHIPPED else Path(cfg.file).expanduser()
    rows = _keep_order(read_rows(find_data_files(require_file(path)).files))
    items = list(_items(path, rows, report, cfg.format, cfg.columns))
    found = {item.key: item for item in reversed(items)}
    unique = [item for item in items if found.get(item.key) is item]
    if not unique:
        head = f"{path}: no row to rate"
        raise DataError("\n".join([head, *report.left_out_lines()]))
    return unique


def require_file(path: Path) -> Path:
    """Return the path of a regular file.

    Raises:
        DataError: it is missing, or a folder, pipe or device, which cannot be read twice.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; need a file of answers")
    if not path.is_file():
        raise DataError(f"{path}: is a folder, pipe or device; need a regular file of answers")
    return path


def read_rated(path: Path, *, ties: bool = False) -> list[Item]:
    """Read a file of rated rows: pairs, labels or rankings.

    Args:
        path: of the file.
        ties: its rows are `responses` that were decided as ties.

    Raises:
        DataError: it cannot be read, or has other rows.
    """
    rows = read_rows(find_data_files(require_file(path)).files)
    report = DataReport()
    items = list(_items(path, _keep_order(rows) if ties else rows, report, "auto", {}))
    return [replace(item, known=(0.0,) * len(item.answers)) for item in items] if ties else items


def _items(
    path: Path, rows: Iterable[RawRow], report: DataReport, kind: Format, columns: Columns
) -> Iterator[Item]:
    cfg = DataConfig(path=str(path), format=kind, columns=columns)
    reader = RecordReader(cfg, "label", _RECORDS, report)
    for found in reader.read(rows):
        yield _item(found)


def _keep_order(rows: Iterable[RawRow]) -> Iterator[RawRow]:
    """Give `responses` different scores, without which a row would be refused as a tie."""
    for row in rows:
        if isinstance(row.parsed, dict) and isinstance(row.parsed.get("responses"), list):
            scores = list(range(len(row.parsed["responses"]), 0, -1))
            yield replace(row, parsed={**row.parsed, "scores": scores})
        else:
            yield row


def _item(found: RecordWithSource) -> Item:
    where, columns = found.location, found.extra_columns
    match found.record:
        case PreferenceRecord(prompt, chosen, rejected):
            return Item("pair", prompt, (chosen, rejected), where, (1.0, 0.0), columns)
        case RankedRecord(prompt, responses, scores):
            return Item("ranking", prompt, responses, where, scores, columns)
        case LabelledRecord(prompt, completion, label):
            return Item("answer", prompt, (completion,), where, (float(label),), columns)
        case ScoredRecord(prompt, completion) | PromptCompletionRecord(prompt, completion):
            return Item("answer", prompt, (completion,), where, None, columns)
        case ChatRecord(messages):
            last = max(i for i, turn in enumerate(messages) if turn.role == "assistant")
            answer = (messages[last:],)
            return Item("answer", messages[:last], answer, where, None, columns)
    raise TypeError(type(found.record))
