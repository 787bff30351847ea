"""One session of rating: shows item after item, and takes a decision about each."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_cli.commands.columns import GAP, fits_columns
from rlhf_cli.commands.label.decisions import DecisionFile
from rlhf_cli.commands.label.items import Item
from rlhf_cli.commands.label.keys import QUIT, ReadKey
from rlhf_cli.console import printable
from rlhf_cli.data.records.fields import Prompt

SKIP, UNDO, TIE = "s", "u", "="
NUMBERS = "123456789abcdefghijklmnoprtvwxyz"
"""Keys of answers: without those of other decisions."""


class Quit(Exception):
    """The rater ends the session."""


class Undo(Exception):
    """The rater takes back the last decision."""


class Skip(Exception):
    """The rater passes over an item, which the next `rlhf label` shows again."""


class Session:
    """Walks through the items that are not decided yet.

    Args:
        items: all items of the file.
        decisions: takes the decisions.
        seed: of the order in which answers are shown.
        console: the terminal.
        read_key: reads what the rater presses.
    """

    def __init__(
        self,
        items: Sequence[Item],
        decisions: DecisionFile,
        seed: int,
        console: Console,
        read_key: ReadKey,
    ) -> None:
        self.items, self.decisions, self.seed = items, decisions, seed
        self.console, self.read_key = console, read_key
        self.skipped: set[str] = set()
        self.past: list[Item] = []

    def run(self) -> None:
        """Ask about every item, until the rater quits."""
        while (item := self._next()) or self.past:
            try:
                if item:
                    self._decide(item)
                else:
                    self._confirm_end()
            except Undo:
                self._undo()
            except Quit:
                return

    def _decide(self, item: Item) -> None:
        try:
            self.decisions.add(item, self._ask(item))
        except Skip:
            self.skipped.add(item.key)
        self.past.append(item)

    def _confirm_end(self) -> None:
        """Let the rater take back the last decision too."""
        if self.read_key("nothing is left; u undo, q quit: ", [UNDO, QUIT]) == UNDO:
            raise Undo
        raise Quit

    def _next(self) -> Item | None:
        passed = self.decisions.done | self.skipped
        return next((item for item in self.items if item.key not in passed), None)

    def _undo(self) -> None:
        """Take back the last decision or skip since the start."""
        if not self.past:
            self.console.print("nothing to undo")
            return
        item = self.past.pop()
        if item.key in self.skipped:
            self.skipped.discard(item.key)
        else:
            self.decisions.undo()

    def _ask(self, item: Item) -> list[float]:
        """Show an item and return the scores of its answers, in the order of the item."""
        order = self._order(item)
        number = len(self.decisions.done) + len(self.skipped) + 1
        title = f"{number} of {len(self.items)} · {printable(item.location)}"
        self.console.rule(Text(title), style="dim")
        show_item(self.console, item, order)
        if item.kind == "answer":
            return [float(self._press("1 or g good, 2 or b bad", "12gb") in "1g")]
        return self._rank(order)

    def _order(self, item: Item) -> list[int]:
        """The answers in the order in which they are shown; the same each time."""
        order = list(range(len(item.answers)))
        random.Random(f"{self.seed} {item.key}").shuffle(order)
        return order

    def _rank(self, order: Sequence[int]) -> list[float]:
        """Ask for the best answer, then for the best of the others, until one is left."""
        picked: list[int] = []
        while len(left := [index for index in order if index not in picked]) > 1:
            keys = [NUMBERS[order.index(index)] for index in left]
            what = "better" if len(order) == 2 else "best"
            try:
                key = self._press(f"{what}: {', '.join(keys)} or = equal", [*keys, TIE])
            except Undo:
                if not picked:
                    raise
                picked.pop()
                continue
            if key == TIE:
                break
            picked.append(order[NUMBERS.index(key)])
        return _scores(picked, len(order))

    def _press(self, meaning: str, keys: Iterable[str]) -> str:
        """Ask for a key.

        Args:
            meaning: what the keys mean, in words.
            keys: keys beside those that every question has.

        Raises:
            Skip: the item is passed over.
            Undo: the last decision is taken back.
            Quit: the session ends.
        """
        text = f"{meaning}; s skip, u undo, q quit: "
        key = self.read_key(text, [*keys, SKIP, UNDO, QUIT])
        for other, signal in ((SKIP, Skip), (UNDO, Undo), (QUIT, Quit)):
            if key == other:
                raise signal
        return key


def _scores(picked: Sequence[int], count: int) -> list[float]:
    """Scores of answers: the first picked is the best; those that were not picked are equal."""
    scores = [0.0] * count
    for rank, index in enumerate(picked):
        scores[index] = float(count - 1 - rank)
    return scores


def show_item(console: Console, item: Item, order: Sequence[int]) -> None:
    """Show a prompt, and its answers in columns or one below the other."""
    if isinstance(item.prompt, str):
        console.print(Text("prompt", "bold"))
    console.print(_text(item.prompt))
    texts = [_text(item.answers[index], heading=False) for index in order]
    names = [f"answer {NUMBERS[i]}" if len(order) > 1 else "answer" for i in range(len(order))]
    if fits_columns(console.width, len(order)):
        table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, expand=True)
        for name in names:
            table.add_column(Text(name, "bold"), ratio=1, overflow="fold")
        table.add_row(*texts)
        console.print(table)
        return
    for name, text in zip(names, texts, strict=True):
        console.print(Text(name, "bold"))
        console.print(text)


def _text(value: Prompt, *, heading: bool = True) -> Text:
    """A prompt or answer; messages with their roles, but a single answer without."""
    if isinstance(value, str):
        return Text(printable(value))
    shown = Text()
    for number, message in enumerate(value):
        shown.append("\n" if number else "")
        if heading or number:
            shown.append(f"{message.role}\n", "bold")
        shown.append(printable(message.content))
        for name, more in message.extra.items():  # tool calls, reasoning
            shown.append(printable(f"\n{name}: {json.dumps(more, ensure_ascii=False)}"), "dim")
    return shown
