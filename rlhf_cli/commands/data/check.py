"""`rlhf data check`: faults of a file, its tokens and its masks, before a run trains on it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from textwrap import wrap
from typing import Any

from rlhf_cli.commands.data.checked_rows import MAX_ROWS, read_checked_data
from rlhf_cli.commands.data.inputs import RowsRequest, read_request
from rlhf_cli.config.suggest import nearest
from rlhf_cli.data.checks.content import CheckedData
from rlhf_cli.data.checks.finding import SEVERITIES, Finding
from rlhf_cli.data.checks.registry import CODES, checks_to_run, find_all
from rlhf_cli.data.report import pluralize
from rlhf_cli.errors import ConfigError, DataError, RlhfError
from rlhf_cli.progress import ProgressCount

JSON_VERSION = 1
"""Version of the JSON output; raised when a key changes its meaning or goes."""

FORMATS = ("text", "json")
STRICT = "--strict"
WIDTH = 100
"""Characters of a line of the text output."""

_INDENT = " " * 9


def run(words: list[str]) -> None:
    """Run `rlhf data check FILE [--strict] [format=json] [ignore=CODES] [rows=N] [key=value ...]`.

    Raises:
        ConfigError: an argument is wrong.
        DataError: the rows cannot be read, or a finding is an error.
        RlhfError: a finding is a warning, with `--strict`.
    """
    strict = STRICT in words
    request = read_request([word for word in words if word != STRICT], ("ignore", "format", "rows"))
    style, ignore, max_rows = _read_options(request)
    data = read_checked_data(request.open(), max_rows)
    findings = _find(data, ignore)
    if style == "json":
        print(json.dumps(to_json(data, findings), ensure_ascii=False, indent=1), flush=True)
    else:
        print("\n".join(format_findings(data, findings)), flush=True)
    _raise_for(findings, strict)


def _read_options(request: RowsRequest) -> tuple[str, tuple[str, ...], int]:
    """Parse the output format, the codes to ignore, and the number of rows to examine."""
    style = request.options.get("format", FORMATS[0])
    if style not in FORMATS:
        raise ConfigError(f"format: got {style}; need {' or '.join(FORMATS)}. Try format=json")
    listed = request.options.get("ignore", "").strip("[]").split(",")
    ignore = tuple(code.strip() for code in listed if code.strip())
    for code in ignore:
        if code not in CODES:
            close = nearest(code, CODES)
            advice = f"Try ignore={close}" if close else "The output names the code of each finding"
            raise ConfigError(f"ignore: got {code}, which no check finds. {advice}")
    number = request.options.get("rows", str(MAX_ROWS))
    if not number.isascii() or not number.isdigit() or not int(number):
        raise ConfigError(f"rows: got {number}; need a whole number of at least 1. Try rows=1000")
    return style, ignore, int(number)


def _find(data: CheckedData, ignore: Sequence[str]) -> list[Finding]:
    checks = checks_to_run(ignore)
    with ProgressCount("checks", len(checks)) as progress:
        found = []
        for check in checks:
            found += find_all(data, [check], ignore)
            progress.add(1)
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def _raise_for(findings: Sequence[Finding], strict: bool) -> None:
    """End with exit code 3 for errors, and 1 for warnings with `--strict`."""
    errors, warnings = (
        [one.code for one in findings if one.severity == severity] for severity in SEVERITIES[:2]
    )
    if errors:
        raise DataError(f"{pluralize(len(errors), 'error')}: {', '.join(dict.fromkeys(errors))}")
    if strict and warnings:
        listed = ", ".join(dict.fromkeys(warnings))
        raise RlhfError(
            f"{pluralize(len(warnings), 'warning')}, and {STRICT} is given: {listed}. "
            f"Leave one out with ignore={warnings[0]}"
        )


def to_json(data: CheckedData, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return everything that the text output says as JSON values."""
    counts = Counter(one.severity for one in findings)
    return {
        "version": JSON_VERSION,
        "stage": data.stage,
        "files": list(data.report.files),
        "kind": data.report.kind,
        "rows": data.rows_total,
        "examined_rows": len(data.rows),
        "kept_rows": data.total,
        **{f"{severity}s": counts[severity] for severity in SEVERITIES},
        "findings": [one.to_dict() for one in findings],
    }


def format_findings(data: CheckedData, findings: Sequence[Finding]) -> list[str]:
    """Return the lines of the text output: a summary, then each finding, the gravest first."""
    return [_summary(data, findings), *(line for one in findings for line in _lines(one))]


def _summary(data: CheckedData, findings: Sequence[Finding]) -> str:
    counts = Counter(one.severity for one in findings)
    found = [pluralize(counts[name], name) for name in SEVERITIES if counts[name]]
    files = ", ".join(data.report.files[:3]) + (" ..." if len(data.report.files) > 3 else "")
    head = f"{files} as {data.stage}: {pluralize(data.rows_total, 'row')}"
    if len(data.rows) < data.rows_total:
        head += f", {len(data.rows)} of them examined (a random sample)"
    return f"{head}: {', '.join(found) or 'nothing found'}"


def _lines(finding: Finding) -> list[str]:
    """Return the lines of one finding: code and count, what it is, examples, advice."""
    count = ""
    if finding.count:
        unit = finding.unit if finding.total == 1 else f"{finding.unit}s"
        count = f"  {finding.count} of {finding.total} {unit} ({_percent(finding)})"
    shown = [
        f"{_INDENT}  {one.location}{f'  {one.text}' if one.text else ''}"
        for one in finding.examples
    ]
    advice = _wrap(f"{finding.advice}.") if finding.advice else []
    return [
        f"{finding.severity:<7}  {finding.code}{count}",
        *_wrap(f"{finding.message[:1].upper()}{finding.message[1:]}."),
        *shown,
        *advice,
    ]


def _percent(finding: Finding) -> str:
    share = 100 * finding.share
    return "under 0.1 %" if share < 0.1 else f"{share:.1f} %"


def _wrap(text: str) -> list[str]:
    return wrap(
        text,
        WIDTH,
        initial_indent=_INDENT,
        subsequent_indent=_INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
