"""Ratings of answers as rows that `rlhf bco`, `rlhf dpo` and `rlhf reward` read as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_cli.commands.chat.model import Answer
from rlhf_cli.data.records.fields import Message, Messages, prompt_to_json
from rlhf_cli.data.records.types import match_kinds
from rlhf_cli.data.report import MalformedRow
from rlhf_cli.data.sources.files import read_rows
from rlhf_cli.errors import ConfigError, DataError
from rlhf_cli.runs.appended_rows import append_row, remove_row, require_appendable, timestamp

Row = dict[str, Any]


@dataclass(frozen=True)
class Written:
    """A row in a file.

    Attributes:
        path: of the file.
        line: of the row.
        values: of the row, without time and rater.
    """

    path: Path
    line: bytes
    values: Row


class Feedback:
    """Appends ratings to two files, and replaces a rating of the same answers.

    Args:
        output: `feedback.jsonl` stands for `feedback.labels.jsonl` and `feedback.pairs.jsonl`.
        rater: name of the person who rates.

    Raises:
        DataError: a file cannot be written, or holds other rows.
    """

    def __init__(self, output: Path, rater: str) -> None:
        stem = output.name.removesuffix(".jsonl")
        self.labels = output.with_name(f"{stem}.labels.jsonl")
        self.pairs = output.with_name(f"{stem}.pairs.jsonl")
        self.rater = rater
        self.written: dict[frozenset[Answer], Written] = {}
        require_rows_of(self.labels, "labelled")
        require_rows_of(self.pairs, "preference")

    def label(self, answer: Answer, *, good: bool) -> str:
        """Append a labelled row.

        Returns:
            What was done, for the user.

        Raises:
            ConfigError: no method can learn from the answer.
            DataError: the file cannot be written.
        """
        if good:
            _require_complete(answer)
        _require_text(answer)
        row = {
            "prompt": prompt_to_json(answer.prompt),
            "completion": answer.text,
            "label": good,
            "model": answer.model,
            "sampling": answer.sampling,
            "finished": answer.finished,
        }
        return self._write(frozenset([answer]), self.labels, row)

    def prefer(self, better: Answer, worse: Answer) -> str:
        """Append a preference row. Where the histories differ, their differing part is compared.

        Raises:
            ConfigError: the answers have no common prompt, or are equal.
            DataError: the file cannot be written.
        """
        _require_complete(better)
        _require_text(better)
        _require_text(worse)
        row = {
            **_compared(better, worse),
            "chosen_model": better.model,
            "rejected_model": worse.model,
            "sampling": better.sampling,
        }
        return self._write(frozenset([better, worse]), self.pairs, row)

    def _write(self, answers: frozenset[Answer], path: Path, values: Row) -> str:
        before = self.written.get(answers)
        if before and before.values == values:
            return f"noted already in {path}"
        row = {**values, "time": timestamp(), "rater": self.rater}
        line = append_row(path, row)
        self.written[answers] = Written(path, line, values)
        if before:
            remove_row(before.path, before.line)
            return f"replaced the row in {path}"
        return f"added a row to {path}"

    def counts(self) -> Mapping[Path, int]:
        """Rows that this chat has written to each file."""
        paths = [row.path for row in self.written.values()]
        return {path: paths.count(path) for path in (self.labels, self.pairs) if path in paths}


def require_rows_of(path: Path, kind: str) -> None:
    """Refuse a file that cannot be appended to, or whose rows are of another kind.

    Args:
        path: of the file; it may be missing.
        kind: name of the record kind.

    Raises:
        DataError: so, with the place.
    """
    require_appendable(path)
    if not path.exists():
        return
    for raw in read_rows([path]):
        try:
            names = set(raw.columns())
        except MalformedRow as error:
            raise DataError(
                f"output: {path}:{raw.line}: {error}. Remove that line, or take another output"
            ) from None
        if kind not in [found.name for found in match_kinds(names)]:
            raise DataError(
                f"output: {path}:{raw.line} has the columns {', '.join(sorted(names))}, and rows "
                f"of the kind {kind} are to be appended; need another output"
            )


def _require_complete(answer: Answer) -> None:
    if answer.stopped:
        raise ConfigError(
            "answer: it was stopped by Ctrl-C, and training on it would teach to stop there. "
            "Try /retry"
        )


def _require_text(answer: Answer) -> None:
    if not answer.text.strip():
        raise ConfigError("answer: it is empty, and no method learns from that. Try /retry")


def _compared(better: Answer, worse: Answer) -> Row:
    """The columns prompt, chosen and rejected.

    Of messages the prompt is what both have in common; an answer that follows a different history
    is the turns from the first difference on.
    """
    one, other = better.prompt, worse.prompt
    if one != other and (isinstance(one, str) or isinstance(other, str)):
        raise ConfigError(
            "answers: the models' texts differ before this answer, so that it has no common "
            "prompt. Try /clear, or start with shared_history=true"
        )
    if one == other:
        if better.text == worse.text:
            raise ConfigError("answers: they are the same; need two that differ. Try /retry")
        return {
            "prompt": prompt_to_json(one),
            "chosen": better.text,
            "rejected": worse.text,
        }
    assert not isinstance(one, str)
    assert not isinstance(other, str)
    first, second = (_with_answer(each) for each in (better, worse))
    at = next(i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
    return {
        "prompt": prompt_to_json(first[:at]),
        "chosen": prompt_to_json(first[at:]),
        "rejected": prompt_to_json(second[at:]),
    }


def _with_answer(answer: Answer) -> Messages:
    assert not isinstance(answer.prompt, str)
    return (*answer.prompt, Message("assistant", answer.text))
