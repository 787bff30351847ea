"""Rows on a terminal: trained tokens green, or in [[ ]] where there is no colour."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rlhf_cli.commands.data.views import RowView, TokenRowView
from rlhf_cli.data.preview import Span, render_spans, shorten
from rlhf_cli.data.report import pluralize

MIN_WIDTH_FOR_COLUMNS = 100
"""Columns of a terminal on which two responses stand side by side."""

MAX_LOST = 200
"""Characters that are shown of what truncation cut."""


@dataclass(frozen=True)
class RowPrinter:
    """Prints rows on stdout.

    Attributes:
        console: where to print.
        full: show long texts completely.
    """

    console: Console
    full: bool

    @property
    def marks(self) -> bool:
        """Whether trained tokens are put in [[ ]], because there is no colour."""
        return not self.console.is_terminal or self.console.no_color

    def print_all(self, rows: Iterable[RowView]) -> None:
        """Print rows one below the other."""
        how = "in [[ ]]" if self.marks else "green"
        example = 0
        for number, row in enumerate(rows):
            if not number:
                self._print(Text(f"trained tokens are {how}; ↵ is a line end in the row", "dim"))
            if row.example and row.example != example:
                self._print(Text(_example_line(row), "bold cyan"))
            example = row.example
            self._print_row(row)

    def _print(self, *parts: RenderableType) -> None:
        for part in parts:
            self.console.print(part, soft_wrap=not self.console.is_terminal, highlight=False)

    def _print_row(self, row: RowView) -> None:
        self._print(Text(), Text(_head(row), "bold"))
        if row.problem:
            what = "malformed" if row.malformed else "refused"
            self._print(Text(f"{what}: {shorten(row.problem, 2000)}", "bold red"))
            for name, value in (row.columns or {}).items():
                self._print(Text(shorten(f"  {name}: {value}", 400)))
            return
        for note in row.notes:
            self._print(Text(f"note: {shorten(note)}", "yellow"))
        if not row.shared_prompt:
            self._print(*(self._token_row(one) for one in row.rows))
            return
        first = row.rows[0]
        prompt = f"prompt, {pluralize(first.response_start, 'token')}"
        self._print(Text(prompt, "bold"), *self._lost_start(first), self._text(first.prompt))
        responses = [self._response(one) for one in row.rows]
        if self.console.width >= MIN_WIDTH_FOR_COLUMNS and self.console.is_terminal:
            self._print(_side_by_side(responses))
        else:
            self._print(*responses)

    def _token_row(self, one: TokenRowView) -> Group:
        name = [Text(one.name, "bold")] if one.name else []
        return Group(*name, *self._lost_start(one), self._text(one.spans), *self._lost_end(one))

    def _response(self, one: TokenRowView) -> Group:
        count = pluralize(len(one.ids) - one.response_start, "token")
        head = Text(f"{one.name}, {count}, {one.trained} trained", "bold")
        return Group(head, self._text(one.response), *self._lost_end(one))

    def _text(self, spans: Iterable[Span]) -> Text:
        return render_spans(spans, marks=self.marks, full=self.full, visible=True)

    def _lost_start(self, one: TokenRowView) -> list[Text]:
        where = "the prompt's start"
        return [self._lost(one.lost_start, where, one.lost_start_text)] if one.lost_start else []

    def _lost_end(self, one: TokenRowView) -> list[Text]:
        where = "the response's end"
        return [self._lost(one.lost_end, where, one.lost_end_text)] if one.lost_end else []

    def _lost(self, tokens: int, where: str, text: str) -> Text:
        head = Text(f"… {pluralize(tokens, 'token')} cut from {where}: ", "yellow")
        shown = shorten(text, len(text) if self.full else MAX_LOST).replace("\n", "↵")
        return head.append(shown, "strike dim")


def open_printer(*, full: bool) -> RowPrinter:
    """Return a printer for stdout."""
    return RowPrinter(Console(file=sys.stdout), full)


def _side_by_side(responses: list[Group]) -> Table:
    table = Table(box=None, show_header=False, expand=True, padding=(0, 1, 0, 0))
    for _ in responses[:2]:
        table.add_column(ratio=1, overflow="fold")
    for start in range(0, len(responses), 2):
        pair = responses[start : start + 2]
        table.add_row(*(Padding(one, (0, 1, 1, 0)) for one in pair))
    return table


def _head(row: RowView) -> str:
    kind = f"{row.kind} row" if row.kind else "row"
    parts = [f"{shorten(row.file)}:{row.line}", kind]
    if len(row.rows) == 1:
        one = row.rows[0]
        parts.append(f"{pluralize(len(one.ids), 'token')}, {_trained(row, one)}")
    elif row.rows:
        counts = " and ".join(str(len(one.ids)) for one in row.rows[:8])
        parts.append(f"{counts}{' ...' if len(row.rows) > 8 else ''} tokens")
    return "── " + " · ".join(parts) + " ──"


def _trained(row: RowView, one: TokenRowView) -> str:
    return f"up to {row.room} to be generated" if row.room else f"{one.trained} trained"


def _example_line(row: RowView) -> str:
    return f"\n══ {row.example_name} {row.example}: {pluralize(row.example_tokens, 'token')} ══"
