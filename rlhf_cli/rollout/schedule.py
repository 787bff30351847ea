"""Which row is in which slot: rows that end leave, rows that wait take their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

PROMPT_TOKENS = 8192
"""No further prompt joins a forward pass that has so many tokens of prompts."""


@dataclass
class Row:
    """A response that is being written.

    Attributes:
        number: its place among all responses.
        prompt: place of its prompt among the prompts.
        before: tokens of the prompt.
        written: tokens of the response so far.
        logprobs: nats, of each written token, where they are kept; else empty.
    """

    number: int
    prompt: int
    before: Sequence[int]
    written: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def last(self) -> int:
        """The token that the model is given next."""
        return self.written[-1] if self.written else self.before[-1]

    @property
    def position(self) -> int:
        """Where that token stands; all before it are in the cache."""
        return len(self.before) + len(self.written) - 1

    @property
    def prefix(self) -> Sequence[int]:
        """What must be in the cache before the first token is drawn: the prompt but its end."""
        return self.before[:-1]


@dataclass
class Turn:
    """What has to happen before the live rows' next tokens.

    Attributes:
        copies: (source slot, target slot, length), one after another.
        prompts: prefixes that no slot has yet, and the slots of each.
    """

    copies: list[tuple[int, int, int]] = field(default_factory=list)
    prompts: list[tuple[Sequence[int], list[int]]] = field(default_factory=list)


class Schedule:
    """Rows in slots. Live rows are in the first ones, so that the cache is read as it stands.

    Args:
        rows: in the order in which they take slots. Those of the same prompt follow one another:
            while one of them waits, the prompt's prefix is in some slot.
        slots: how many are live at once.

    Attributes:
        live: live[s] is in slot s.
    """

    def __init__(self, rows: Sequence[Row], slots: int) -> None:
        self.live: list[Row] = []
        self._waiting = list(rows)[::-1]
        self._slots = slots
        self._held: dict[int, int] = {}  # slot -> prompt whose prefix is in it

    def turn(self, ended: Sequence[int] = ()) -> Turn:
        """Fill the slots of rows that ended, with waiting rows or else with the last live ones.

        Args:
            ended: slots, in ascending order.
        """
        turn = Turn()
        fresh: dict[int, list[int]] = {}  # prompt -> its slots in turn.prompts
        holes = list(ended)
        while self._waiting and (holes or len(self.live) < self._slots):
            if sum(len(prefix) for prefix, _ in turn.prompts) >= PROMPT_TOKENS:
                break
            slot = holes.pop(0) if holes else len(self.live)
            self._enter(slot, self._waiting.pop(), turn, fresh)
        while holes:
            last = len(self.live) - 1
            if holes[-1] == last:
                holes.pop()
            else:
                self._move(last, holes.pop(0), turn)
            self.live.pop()
        return turn

    def _enter(self, slot: int, row: Row, turn: Turn, fresh: dict[int, list[int]]) -> None:
        self.live[slot : slot + 1] = [row]
        if row.prompt in fresh:
            fresh[row.prompt].append(slot)
        elif self._held.get(slot) != row.prompt:
            holder = next((s for s, prompt in self._held.items() if prompt == row.prompt), None)
            if holder is not None:
                turn.copies.append((holder, slot, len(row.prefix)))
            elif row.prefix:
                fresh[row.prompt] = [slot]
                turn.prompts.append((row.prefix, fresh[row.prompt]))
        self._held[slot] = row.prompt

    def _move(self, source: int, target: int, turn: Turn) -> None:
        row = self.live[source]
        self.live[target] = row
        self._held[target] = row.prompt
        turn.copies.append((source, target, row.position))
