"""`rlhf data show`: rows as a stage reads them."""

from __future__ import annotations

from itertools import islice

from rlhf_cli.commands.data.inputs import read_request


def run(words: list[str]) -> None:
    """Run `rlhf data show FILE [row=N] [key=value ...]`."""
    rows = read_request(words, ("row", "rows", "format", "output")).open()
    for one in islice(rows.inspect(), 3):
        lengths = [len(row.row.tokens) for row in one.rows]
        print(one.raw.location, one.problem or lengths)
