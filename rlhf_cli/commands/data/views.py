"""What is shown of a row: its token rows as spans of text, what was cut, and its location."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from rlhf_cli.commands.data.selection import Selection
from rlhf_cli.data.preview import Span, SpanDecoder, row_names
from rlhf_cli.data.records.reader import RecordWithSource
from rlhf_cli.data.records.types import LabelledRecord, TextRecord, kind_name, response_scores
from rlhf_cli.data.tokens.packing import Example, ExampleRow, TruncatedRow
from rlhf_cli.stages.inspection import InspectedRow, StageRows
from rlhf_cli.stages.rollouts.config import RolloutSettings

Place = tuple[str, int]
"""File and line of a row."""

MAX_PIECES = 3
"""Pieces of a document, or packed examples, that are shown unless all are asked for."""


@dataclass(frozen=True)
class TokenRowView:
    """A token row as text.

    Attributes:
        name: `chosen`, `rejected`, ...; empty for the only row of a record.
        ids: token ids.
        loss_mask: whether each token is a target.
        response_start: index of the first token after the prompt.
        spans: the tokens as text.
        lost_start: number of tokens that truncation took from the start of the prompt.
        lost_start_text: those tokens as text.
        lost_end: number of tokens that it took from the end of the response.
        lost_end_text: those tokens as text.
        score: score, label or margin of the row, if it has one.
    """

    name: str
    ids: list[int]
    loss_mask: list[bool]
    response_start: int
    spans: list[Span]
    lost_start: int = 0
    lost_start_text: str = ""
    lost_end: int = 0
    lost_end_text: str = ""
    score: float | None = None

    @property
    def trained(self) -> int:
        """Number of tokens in the loss."""
        return sum(self.loss_mask)

    @property
    def prompt(self) -> list[Span]:
        """Spans before the response."""
        return [span for span in self.spans if span.end <= self.response_start]

    @property
    def response(self) -> list[Span]:
        """Spans of the response."""
        return [span for span in self.spans if span.end > self.response_start]

    @property
    def text(self) -> str:
        """All tokens as text."""
        return "".join(span.text for span in self.spans)


@dataclass(frozen=True)
class RowView:
    """A row of a file as the stage reads it.

    Attributes:
        file: name of the file.
        line: line number from 1.
        kind: kind of its record; empty if it has none.
        rows: its token rows.
        problem: why the row is left out; empty if it is kept.
        malformed: whether it breaks its format.
        notes: changes to the row.
        example: number of the packed example or piece that the tokens are in, from 1; 0 for none.
        example_name: `packed example` or `piece`, of a document.
        example_tokens: number of tokens of that example.
        room: tokens that a response to the prompt may have; 0 if the stage generates none.
        columns: the row as the file has it; empty if it cannot be read.
    """

    file: str
    line: int
    kind: str
    rows: list[TokenRowView]
    problem: str = ""
    malformed: bool = False
    notes: tuple[str, ...] = ()
    example: int = 0
    example_name: str = "piece"
    example_tokens: int = 0
    room: int = 0
    columns: dict[str, Any] | None = None

    @property
    def location(self) -> str:
        """`file:line`, as in messages."""
        return f"{self.file}:{self.line}"

    @property
    def shared_prompt(self) -> bool:
        """Whether there are several token rows, which begin with the same prompt."""
        prompts = [row.ids[: row.response_start] for row in self.rows]
        return len(prompts) > 1 and bool(prompts[0]) and all(one == prompts[0] for one in prompts)


class RowViewer:
    """Makes views of a stage's rows.

    Args:
        rows: rows of the stage.
        all_pieces: show every piece of a document.
    """

    def __init__(self, rows: StageRows, *, all_pieces: bool) -> None:
        self.rows, self.all_pieces = rows, all_pieces
        self.decoder = SpanDecoder(rows.tokenizer)
        cfg = rows.config
        self.room = 0
        if cfg.generates:
            self.room = cast(RolloutSettings, cfg).sampling.max_new_tokens
        self.hidden_pieces = 0
        """Pieces of documents, and packed examples, that were left out."""

    def views(self, selection: Selection) -> Iterator[RowView]:
        """Yield the selected rows; of packed or split rows, the examples that contain them.

        Raises:
            ConfigError: no row is selected.
            DataError: the rows cannot be read, or the stage does not take them.
        """
        picked = self.rows.tokenize(selection.pick(self.rows.read()))
        first = next(picked, None)
        assert first is not None  # the selection refuses to be empty
        if self.rows.data.packing:
            yield from self._packed(selection)
        elif isinstance(first.record, TextRecord):
            yield from self._pieces(first, picked)
        else:
            yield self._view(first)
            yield from map(self._view, picked)

    def _view(self, one: InspectedRow) -> RowView:
        record = one.record
        kind = kind_name(record) if record else ""
        scores = () if record is None else response_scores(record) or ()
        names = row_names(kind, scores) or [""] * len(one.rows)
        if kind == "preference" and LabelledRecord in self.rows.records[:1]:
            names = ["chosen, as desirable", "rejected, as undesirable"]  # an example each
        rows = [
            self._token_row(row, name, scores[i] if scores else None)
            for i, (row, name) in enumerate(zip(one.rows, names, strict=False))
            if not isinstance(record, TextRecord)  # its pieces are shown
        ]
        source = one.outcome if isinstance(one.outcome, RecordWithSource) else None
        written = one.tokenized.formatted if one.tokenized else ()
        notes = (*(source.notes if source else ()), *(row.note for row in written if row.note))
        return RowView(
            one.raw.file,
            one.raw.line,
            kind,
            rows,
            one.problem,
            one.malformed,
            tuple(dict.fromkeys(notes)),
            room=self.room,
            columns=one.raw.parsed if isinstance(one.raw.parsed, dict) else None,
        )

    def _token_row(self, row: TruncatedRow, name: str, score: float | None) -> TokenRowView:
        ids, mask = row.row.tokens.tolist(), row.row.loss_mask.tolist()
        start = row.row.response_start
        return TokenRowView(
            name,
            ids,
            mask,
            start,
            self.decoder.spans(ids, mask, start),
            row.prompt_start,
            self.decoder.decode(row.lost_start.tolist()),
            row.response_end,
            self.decoder.decode(row.lost_end.tolist()) if row.response_end else "",
            score,
        )

    def _pieces(self, first: InspectedRow, others: Iterator[InspectedRow]) -> Iterator[RowView]:
        """Yield the pieces that each document is split into."""
        for one in (first, *others):
            view = self._view(one)
            if one.problem:
                yield view
                continue
            pieces = list(self.rows.group(iter([one])))
            shown = pieces if self.all_pieces else pieces[:MAX_PIECES]
            self.hidden_pieces += len(pieces) - len(shown)
            for number, piece in enumerate(shown, start=1):
                yield self._with_rows(view, [piece[0]], number if len(pieces) > 1 else 0)

    def _with_rows(self, view: RowView, rows: Sequence[ExampleRow], example: int) -> RowView:
        made = [self._token_row(TruncatedRow(one.row, 0, 0, one.row), "", None) for one in rows]
        return replace(view, rows=made, example=example, example_tokens=sum(map(len, rows)))

    def _packed(self, selection: Selection) -> Iterator[RowView]:
        """Yield the rows of every packed example that contains a selected row."""
        wanted = {(raw.file, raw.line) for raw, _ in selection.pick(self.rows.read())}
        missing = set(wanted)
        seen: dict[Place, InspectedRow] = {}

        def kept() -> Iterator[InspectedRow]:
            for one in self.rows.inspect():
                seen[one.raw.file, one.raw.line] = one
                if one.problem:
                    missing.discard((one.raw.file, one.raw.line))
                yield one

        shown = 0
        for number, example in enumerate(self.rows.group(kept()), start=1):
            places = {(row.file, row.line) for row in example}
            missing -= places
            if places & wanted:
                shown += 1
                if self.all_pieces or shown <= MAX_PIECES:
                    yield from self._of_example(example, number, seen)
                else:
                    self.hidden_pieces += 1
            elif not missing:
                break
        refused = (one for place, one in seen.items() if one.problem and place in wanted)
        yield from map(self._view, refused)

    def _of_example(
        self, example: Example, number: int, seen: dict[Place, InspectedRow]
    ) -> Iterator[RowView]:
        tokens = sum(map(len, example))
        for row in example:
            view = self._view(seen[row.file, row.line])
            if not view.rows:
                view = self._with_rows(view, [row], number)
            yield replace(
                view, example=number, example_name="packed example", example_tokens=tokens
            )
