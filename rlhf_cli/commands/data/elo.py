"""`rlhf data elo`: rate the responses of each row by their comparisons."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_cli.data.records import fields
from rlhf_cli.data.report import MAX_SHOWN, MalformedRow, pluralize
from rlhf_cli.data.sources.base import RawRow, describe_value
from rlhf_cli.data.sources.files import find_data_files, read_rows
from rlhf_cli.errors import ConfigError, DataError
from rlhf_cli.evaluation.elo import TIE, rate_items
from rlhf_cli.runs.outputs import open_output
from rlhf_cli.runs.run_files import format_json_lines

Row = dict[str, Any]


def run(args: list[str]) -> None:
    """Run `rlhf data elo ARGS`.

    Raises:
        ConfigError: the arguments are invalid.
        DataError: the file cannot be read, has bad rows, or the result cannot be written.
    """
    source, target = _files(args)
    rows = _rate_rows(source)
    text = format_json_lines(rows)
    if target is None:
        print(text, end="", flush=True)
    else:
        with open_output(target) as write:
            write(text)
    print(_summary(rows) + (f" -> {target}" if target else ""), file=sys.stderr)


def _files(args: list[str]) -> tuple[Path, Path | None]:
    """Parse the file to read and, if one is named, the file to write."""
    targets = [arg.removeprefix("output=") for arg in args if arg.startswith("output=")]
    sources = [arg for arg in args if not arg.startswith("output=")]
    if len(sources) != 1 or len(targets) > 1 or targets == [""]:
        got = " ".join(args) or "nothing"
        raise ConfigError(
            f"data elo: got {got}; need one file and at most one output=FILE. "
            "Try rlhf data elo rows.jsonl output=rated.jsonl"
        )
    source = Path(sources[0]).expanduser()
    if not source.is_file():
        raise DataError(f"data elo: {source} is no file; need one with responses and comparisons")
    if not targets:
        return source, None
    target = Path(targets[0]).expanduser()
    if target.suffix != ".jsonl":
        raise ConfigError(
            f"output: got {target}; need a .jsonl file. Try output={target.stem}.jsonl"
        )
    if target.exists() and target.samefile(source):
        raise ConfigError(f"output: {target} is the file that is read; need another name")
    return source, target


def _rate_rows(source: Path) -> list[Row]:
    """Read the rows and add the ratings of their responses.

    Raises:
        DataError: rows cannot be rated; the message names at most five.
    """
    rows, bad = [], []
    for raw in read_rows(find_data_files(source).files):
        try:
            rows.append(_rate_row(raw))
        except MalformedRow as error:
            bad.append(f"{raw.location}: {error}")
    if bad:
        more = [f"  and {len(bad) - MAX_SHOWN} more"] if len(bad) > MAX_SHOWN else []
        head = f"{len(bad)} of {pluralize(len(rows) + len(bad), 'row')} cannot be rated"
        raise DataError("\n".join([head, *(f"  {line}" for line in bad[:MAX_SHOWN]), *more]))
    return rows


def _rate_row(raw: RawRow) -> Row:
    columns = raw.columns()
    missing = [name for name in ("responses", "comparisons") if name not in columns]
    if missing:
        raise MalformedRow(f"no column {', '.join(missing)}; found {', '.join(columns) or 'none'}")
    items = len(fields.parse_list("responses", columns["responses"]))
    listed = fields.parse_list("comparisons", columns["comparisons"])
    games = [_check_comparison(f"comparisons[{i}]", item, items) for i, item in enumerate(listed)]
    rated = rate_items(items, np.array(games))
    played = rated.games > 0
    return {
        **columns,
        "scores": rated.scores.round(2).tolist(),
        "comparisons_count": rated.games.tolist(),
        "uncertainty": [
            round(points, 2) if some else None
            for points, some in zip(rated.uncertainty.tolist(), played, strict=True)
        ],
    }


def _check_comparison(name: str, value: Any, items: int) -> list[int]:
    """Check one comparison `[i, j, winner]`."""
    whole = isinstance(value, list) and all(type(number) is int for number in value)
    if not whole or len(value) != 3:
        got = value if whole else describe_value(value)
        raise MalformedRow(f"{name}: got {got}; need [i, j, winner], three whole numbers")
    one, other, winner = value
    if one == other or not all(0 <= item < items for item in (one, other)):
        raise MalformedRow(
            f"{name}: got {value}; need i and j to be two of {items} responses, 0 to {items - 1}"
        )
    if winner not in (one, other, TIE):
        raise MalformedRow(
            f"{name}: got {value}; need the winner to be {one}, {other} or -1 (a tie)"
        )
    return [one, other, winner]


def _summary(rows: list[Row]) -> str:
    scores = [score for row in rows for score in row["scores"]]
    spread = [points for row in rows for points in row["uncertainty"] if points is not None]
    games = sum(map(sum, (row["comparisons_count"] for row in rows))) // 2
    tied = sum(len({*row["scores"]}) == 1 for row in rows)
    unrated = len(scores) - len(spread)
    return (
        f"{pluralize(len(rows), 'row')}, {pluralize(len(scores), 'response')}, "
        f"{pluralize(games, 'comparison')}; scores {min(scores):.0f} to {max(scores):.0f}, "
        f"uncertainty {np.mean(spread):.0f} in the mean"
        + (f"; {pluralize(unrated, 'response')} never compared" if unrated else "")
        + (f"; {pluralize(tied, 'row')} with equal scores, which no ranking takes" if tied else "")
    )
