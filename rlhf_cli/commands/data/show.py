"""`rlhf data show`: rows as a stage reads them, on a terminal, as JSON or as an HTML page."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_cli.commands.data.inputs import RowsRequest, read_request
from rlhf_cli.commands.data.page import render_page
from rlhf_cli.commands.data.selection import parse_selection
from rlhf_cli.commands.data.terminal import open_printer
from rlhf_cli.commands.data.views import RowView, RowViewer, TokenRowView
from rlhf_cli.config.suggest import nearest
from rlhf_cli.data.report import pluralize, to_utf8
from rlhf_cli.errors import ConfigError
from rlhf_cli.runs.outputs import open_output
from rlhf_cli.stages.tokenizers import log_plain_text

OPTIONS = ("row", "rows", "format", "output", "full")
FORMATS = ("terminal", "json", "html")


def run(words: list[str]) -> None:
    """Run `rlhf data show FILE [row=N] [format=json] [key=value ...]`.

    Raises:
        ConfigError: an argument is wrong, or no row is selected.
        DataError: the rows cannot be read, or the stage does not take them.
    """
    request = read_request(words, OPTIONS)
    options = request.options
    output, form = parse_format(options, FORMATS, {".html": "html", ".jsonl": "json"})
    selection, full = parse_selection(options), parse_switch("full", options.get("full", "false"))
    rows = request.open()
    viewer = RowViewer(rows, all_pieces=full)
    views = viewer.views(selection)
    if form == "terminal":
        open_printer(full=full or selection.single).print_all(views)
    else:
        write_text(_as_text(request, form, list(views)), output)
    if viewer.hidden_pieces:
        more = pluralize(viewer.hidden_pieces, "more example")
        print(f"{more} of these rows; full=true shows all", file=sys.stderr)
    log_plain_text(request.config, rows.tokenizer, rows.report)
    for line in rows.note_lines():
        print(line.strip(), file=sys.stderr)


def _as_text(request: RowsRequest, form: str, views: list[RowView]) -> str:
    if form == "html":
        return render_page(views, stage=request.stage)
    lines = (json.dumps(_row_to_json(view, request.stage)) for view in views)
    return "".join(f"{line}\n" for line in lines)


def parse_format(
    options: dict[str, str] | Any, formats: tuple[str, ...], suffixes: dict[str, str]
) -> tuple[str, str]:
    """Parse `output` and `format`, which the suffix of the output decides if it is not given.

    Args:
        options: options of the action.
        formats: values of `format`, the default first.
        suffixes: suffix of the output -> its format.

    Raises:
        ConfigError: they are unknown, or contradict each other.
    """
    output, form = options.get("output", ""), options.get("format", "")
    if form and form not in formats:
        close = nearest(form, formats) or formats[0]
        needed = ", ".join(formats)
        raise ConfigError(f"format: got {form}; need one of {needed}. Try format={close}")
    if not output:
        return "", form or formats[0]
    implied = suffixes.get(Path(output).suffix.lower(), "")
    if not implied or (form and form != implied):
        needed = " or ".join(f"{end} (format={name})" for end, name in suffixes.items())
        suffix = next((end for end, name in suffixes.items() if name == form), next(iter(suffixes)))
        raise ConfigError(
            f"output: got {output}; need a name that ends with {needed}. "
            f"Try output={Path(output).with_suffix(suffix)}"
        )
    return output, implied


def parse_switch(name: str, text: str) -> bool:
    """Parse an option that is true or false.

    Raises:
        ConfigError: it is neither.
    """
    if text not in ("true", "false"):
        raise ConfigError(f"{name}: got {text}; need true or false. Try {name}=true")
    return text == "true"


def write_text(text: str, output: str) -> None:
    """Write a result to a file, or to stdout if `output` is empty.

    Raises:
        DataError: the file cannot be written.
    """
    if not output:
        print(text, end="", flush=True)
        return
    with open_output(Path(output).expanduser()) as write:
        write(text)
    print(f"-> {output}", file=sys.stderr)


def _row_to_json(view: RowView, stage: str) -> dict[str, Any]:
    return {
        "location": view.location,
        "file": view.file,
        "line": view.line,
        "stage": stage,
        "kind": view.kind,
        "problem": to_utf8(view.problem) or None,
        "malformed": view.malformed,
        "notes": list(view.notes),
        "example": view.example or None,
        "rows": [_token_row_to_json(row) for row in view.rows],
    }


def _token_row_to_json(row: TokenRowView) -> dict[str, Any]:
    return {
        "name": row.name,
        "score": row.score,
        "tokens": len(row.ids),
        "trained": row.trained,
        "prompt_tokens": row.response_start,
        "cut_start": row.lost_start,
        "cut_start_text": row.lost_start_text,
        "cut_end": row.lost_end,
        "cut_end_text": row.lost_end_text,
        "text": row.text,
        "ids": row.ids,
        "loss_mask": [int(one) for one in row.loss_mask],
        "spans": list(_spans_to_json(row)),
    }


def _spans_to_json(row: TokenRowView) -> Iterator[dict[str, Any]]:
    for span in row.spans:
        yield {
            "start": span.start,
            "end": span.end,
            "text": span.text,
            "trained": span.trained,
            "special": span.special,
        }
