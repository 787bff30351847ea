"""`rlhf data convert`: write the rows of a file in another layout."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rlhf_cli.commands.data.inputs import resolve_data, split_options
from rlhf_cli.config.suggest import nearest
from rlhf_cli.console import logger
from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.conversion.convert import ConversionReport, Converter
from rlhf_cli.data.conversion.layouts import LAYOUTS, SOURCES
from rlhf_cli.data.conversion.pairs import CHOICES
from rlhf_cli.data.records.reader import Outcome, RecordReader
from rlhf_cli.data.records.types import ANY_RECORDS
from rlhf_cli.data.report import MAX_SHOWN, DataReport, pluralize
from rlhf_cli.data.sources.base import RawRow
from rlhf_cli.data.sources.mixture import mix_training_rows, open_sources
from rlhf_cli.errors import ConfigError, DataError
from rlhf_cli.runs.outputs import open_output
from rlhf_cli.runs.run_files import to_json_line

CHOSEN = {
    "from": tuple(SOURCES),
    "to": tuple(LAYOUTS),
    "pairs": ("none", *CHOICES),
    "transcripts": ("text", "messages"),
}
"""Option -> its values, the default first."""

CHUNK_ROWS = 1000
"""Rows that are written at once."""


def run(words: list[str]) -> None:
    """Run `rlhf data convert SOURCE TARGET.jsonl [key=value ...]`.

    Raises:
        ConfigError: an argument is wrong.
        DataError: the source cannot be read, no row can be converted, or the target not written.
    """
    given, rest = split_options(words, tuple(CHOSEN))
    options = {name: _choose(name, given.get(name, "")) for name in CHOSEN}
    target, rest = _take_target(rest)
    data = resolve_data(rest)
    pairs = "" if options["pairs"] == "none" else options["pairs"]
    converter = Converter(options["to"], pairs, options["transcripts"] == "messages")
    report = DataReport()
    converted = converter.convert(_read(data, options["from"], report))
    first = next(converted, None)
    if first is None:
        head = f"none of {pluralize(converter.report.rows, 'row')} can be written"
        raise DataError("\n".join([head, *_left_out_lines(converter.report)]))
    with open_output(target) as write:
        lines = (to_json_line(columns) for columns in chain([first], converted))
        while chunk := "".join(islice(lines, CHUNK_ROWS)):
            write(chunk)
        report.require_few_malformed(data.max_bad_rows)
    for line in _summary(converter.report, target):
        logger.info(line)
    if options["to"] in ("llama_factory", "sharegpt"):
        logger.info(f"dataset_info.json of LLaMA-Factory: {_dataset_info(target, first)}")


def _choose(name: str, text: str) -> str:
    """Return the value of an option, by default the first.

    Raises:
        ConfigError: it is none of the values.
    """
    values = CHOSEN[name]
    if text and text not in values:
        advice = f"Try {name}={nearest(text, values) or values[0]}"
        raise ConfigError(f"{name}: got {text}; need one of {', '.join(values)}. {advice}")
    return text or values[0]


def _take_target(words: list[str]) -> tuple[Path, list[str]]:
    """Take the second bare argument, the file to write, out of the arguments.

    Raises:
        ConfigError: there is none, or it is no new `.jsonl` file.
    """
    bare = [word for word in words if "=" not in word and not word.startswith("-")]
    needed = "need a source and a new .jsonl file. Try rlhf data convert rows.json rows.jsonl"
    if not bare or len(bare) > 2:
        raise ConfigError(f"data convert: got {' '.join(bare) or 'nothing'}; {needed}")
    target = Path(bare[-1]).expanduser()
    named = any(word.startswith(("data=", "data.path=")) for word in words)
    if len(bare) == 1 and not named:
        raise ConfigError(f"data convert: got {bare[0]} alone; {needed}")
    if target.suffix != ".jsonl":
        raise ConfigError(
            f"{target}: need a .jsonl file to write. Try {target.with_suffix('.jsonl')}"
        )
    if target.exists():
        raise ConfigError(f"{target}: is there already; need a new file, nothing is overwritten")
    rest = list(words)
    rest.reverse()
    rest.remove(bare[-1])
    return target, rest[::-1]


def _read(data: DataConfig, layout: str, report: DataReport) -> Iterator[tuple[RawRow, Outcome]]:
    """Read the rows of any kind.

    Raises:
        DataError: they do not have the columns of the layout.
    """
    sources = [
        replace(source, settings=replace(source.settings, weight=1.0))
        for source in open_sources(data, data.path, "convert", "train")
    ]
    mixture = mix_training_rows(sources, 0, seed=0)
    settings = [source.settings for source in mixture.sources]
    reader = RecordReader(data, "convert", ANY_RECORDS, report, settings)
    return reader.outcomes(_require_layout(mixture.rows(), layout))


def _require_layout(rows: Iterator[RawRow], layout: str) -> Iterator[RawRow]:
    """Require the first readable row to have the columns of a layout."""
    checked = False
    for row in rows:
        if not checked and isinstance(row.parsed, dict):
            checked = True
            wanted = SOURCES[layout]
            # messages of trees were assembled, and are columns of the first one now
            inner = row.parsed.get("prompt")
            names = {*row.parsed, *(inner if isinstance(inner, dict) else ())}
            if not any(set(columns) <= names for columns in wanted):
                needed = " or ".join(", ".join(columns) for columns in wanted)
                found = ", ".join(row.parsed)
                raise DataError(f"{row.location}: from={layout} needs {needed}; found {found}")
        yield row


def _summary(report: ConversionReport, target: Path) -> list[str]:
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.written.items())
    written = sum(report.written.values())
    head = f"{pluralize(report.rows, 'row')} read, {written} written ({kinds}) -> {target}"
    lines = [head, *_left_out_lines(report)]
    if report.skipped_pairs:
        what = pluralize(report.skipped_pairs, "pair")
        lines.append(f"  {what} skipped: equal scores or equal responses")
    lines += [f"  {pluralize(rows, 'row')}: {note}" for note, rows in report.notes.items()]
    if names := ", ".join(f"{n} ({rows})" for n, rows in report.dropped_columns.items()):
        lines.append(f"  columns left out: {names}")
    return lines


def _left_out_lines(report: ConversionReport) -> list[str]:
    reasons = sorted(report.left_out.items(), key=lambda item: -item[1].rows)
    lines = [
        f"  {pluralize(found.rows, 'row')} left out: {reason}; the first is {found.example}"
        for reason, found in reasons[:MAX_SHOWN]
    ]
    more = len(reasons) - MAX_SHOWN
    return [*lines, f"  and {more} more reasons"] if more > 0 else lines


def _dataset_info(target: Path, columns: Mapping[str, Any]) -> str:
    """Return the entry of LLaMA-Factory's `dataset_info.json` for the rows."""
    sharegpt = "conversations" in columns
    theirs = {"conversations": "messages"}
    theirs |= {"instruction": "prompt", "input": "query", "output": "response", "text": "prompt"}
    theirs |= {
        name: name for name in ("chosen", "rejected", "kto_tag", "system", "history", "tools")
    }
    entry: dict[str, Any] = {"file_name": target.name}
    if sharegpt:
        entry["formatting"] = "sharegpt"
    if "chosen" in columns:
        entry["ranking"] = True
    entry["columns"] = {theirs[name]: name for name in columns if name in theirs}
    return json.dumps({target.stem: entry})
