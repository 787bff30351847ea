"""What is done to files of rows before a stage reads them: ratings from comparisons."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_cli.commands.output import writing
from rlhf_cli.config.suggest import nearest
from rlhf_cli.data.elo import TIE, rate
from rlhf_cli.data.reading.files import data_files, read_rows
from rlhf_cli.data.reading.raw import RawRow, show_value
from rlhf_cli.data.records import fields
from rlhf_cli.data.records.row_errors import Malformed
from rlhf_cli.data.report import SHOWN, count
from rlhf_cli.errors import ConfigError, DataError

Row = dict[str, Any]


def run(words: list[str]) -> None:
    """Do what `rlhf data WORDS` says.

    Raises:
        ConfigError: the words ask for nothing that is there.
        DataError: the file cannot be read, has bad rows, or the result cannot be written.
    """
    action, *rest = words or [""]
    if action != "elo":
        advice = f"Try rlhf data {nearest(action, ['elo']) or 'elo'} FILE"
        raise ConfigError(f"data: got {action or 'nothing'}; need elo. {advice}")
    source, target = _files(rest)
    rows = _rated(source)
    text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    if target is None:
        print(text, end="", flush=True)
    else:
        with writing(target) as write:
            write(text)
    print(_summary(rows) + (f" -> {target}" if target else ""), file=sys.stderr)


def _files(words: list[str]) -> tuple[Path, Path | None]:
    """The file to read and, where one is named, the file to write."""
    targets = [word.removeprefix("output=") for word in words if word.startswith("output=")]
    sources = [word for word in words if not word.startswith("output=")]
    if len(sources) != 1 or len(targets) > 1 or targets == [""]:
        got = " ".join(words) or "nothing"
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


def _rated(source: Path) -> list[Row]:
    """The rows with the ratings of their responses.

    Raises:
        DataError: names the rows that have none, at most five.
    """
    rows, bad = [], []
    for raw in read_rows(data_files(source).read):
        try:
            rows.append(_with_ratings(raw))
        except Malformed as error:
            bad.append(f"{raw.where}: {error}")
    if bad:
        more = [f"  and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
        head = f"{len(bad)} of {count(len(rows) + len(bad), 'row')} cannot be rated"
        raise DataError("\n".join([head, *(f"  {line}" for line in bad[:SHOWN]), *more]))
    return rows


def _with_ratings(raw: RawRow) -> Row:
    columns = raw.columns()
    missing = [name for name in ("responses", "comparisons") if name not in columns]
    if missing:
        raise Malformed(f"no column {', '.join(missing)}; found {', '.join(columns) or 'none'}")
    items = len(fields.some("responses", columns["responses"]))
    listed = fields.some("comparisons", columns["comparisons"])
    games = [_game(f"comparisons[{i}]", item, items) for i, item in enumerate(listed)]
    rated = rate(items, np.array(games))
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


def _game(name: str, value: Any, items: int) -> list[int]:
    """`[i, j, winner]`, checked."""
    whole = isinstance(value, list) and all(type(number) is int for number in value)
    if not whole or len(value) != 3:
        got = value if whole else show_value(value)
        raise Malformed(f"{name}: got {got}; need [i, j, winner], three whole numbers")
    one, other, winner = value
    if one == other or not all(0 <= item < items for item in (one, other)):
        raise Malformed(
            f"{name}: got {value}; need i and j to be two of {items} responses, 0 to {items - 1}"
        )
    if winner not in (one, other, TIE):
        raise Malformed(f"{name}: got {value}; need the winner to be {one}, {other} or -1 (a tie)")
    return [one, other, winner]


def _summary(rows: list[Row]) -> str:
    scores = [score for row in rows for score in row["scores"]]
    spread = [points for row in rows for points in row["uncertainty"] if points is not None]
    games = sum(map(sum, (row["comparisons_count"] for row in rows))) // 2
    tied = sum(len({*row["scores"]}) == 1 for row in rows)
    unrated = len(scores) - len(spread)
    return (
        f"{count(len(rows), 'row')}, {count(len(scores), 'response')}, "
        f"{count(games, 'comparison')}; scores {min(scores):.0f} to {max(scores):.0f}, "
        f"uncertainty {np.mean(spread):.0f} in the mean"
        + (f"; {count(unrated, 'response')} never compared" if unrated else "")
        + (f"; {count(tied, 'row')} with equal scores, which no ranking takes" if tied else "")
    )
