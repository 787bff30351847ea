"""Findings about the rows that the loader does not train on, by its own reasons."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_cli.data.checks.content import MAX_LOCATIONS, CheckedData
from rlhf_cli.data.checks.finding import Finding, FoundAt, Severity, excerpt

CODES = (
    ("chosen equals rejected", "chosen-equals-rejected"),
    ("all responses have the same tokens", "same-response-tokens"),
    ("all responses are the same within", "same-after-truncation"),
    ("the two transcripts have", "different-prompts"),
    ("empty response", "empty-response"),
    ("empty text", "empty-response"),
    ("no response within", "response-cut-off"),
    ("longer than data.max_length", "too-long"),
    ("no token of a response", "empty-mask"),
    ("only end or pad tokens", "empty-mask"),
    ("no assistant message", "empty-mask"),
    ("all scores are equal", "tied-rankings"),
    ("the chat template", "refused-by-template"),
)
"""Begin of a reason -> code of the finding; `refused-rows` for all others."""

_ADVICE = {
    "chosen-equals-rejected": "Remove the rows: neither response is better",
    "same-response-tokens": "Remove the rows: the responses differ only in what becomes no token",
    "same-after-truncation": "Set a larger data.max_length, or remove the rows",
    "different-prompts": "Write pairs as prompt, chosen, rejected with one prompt",
    "empty-response": "Remove the rows, or fill the column",
    "response-cut-off": "Set a larger data.max_length, or shorten the prompts",
    "too-long": "Set a larger data.max_length, or another data.truncation",
    "empty-mask": "Remove the rows: there is nothing to train on in them",
    "tied-rankings": "Remove the rows: they rank nothing",
    "refused-by-template": "Change the rows, or give another model.chat_template=FILE",
}


def check_malformed(data: CheckedData) -> Iterator[Finding]:
    """Report malformed rows; more than `data.max_bad_rows` of them stop a run."""
    report = data.report
    if not report.malformed:
        return
    severity: Severity = "error" if report.malformed > data.cfg.max_bad_rows else "warning"
    shown = (line.partition(": ") for line in report.malformed_shown[:MAX_LOCATIONS])
    yield Finding(
        code="malformed-rows",
        severity=severity,
        message="malformed rows: broken JSON, missing columns or wrong types",
        count=report.malformed,
        total=report.rows,
        examples=tuple(FoundAt(place, excerpt(error, None, 160)) for place, _, error in shown),
        advice=f"Repair them, or leave them out with data.max_bad_rows={report.malformed}",
    )


def check_refused(data: CheckedData) -> Iterator[Finding]:
    """Report refused rows by reason; an error if no row is left."""
    report = data.report
    refused = sum(found.rows for found in report.refused.values())
    nothing_left = refused and refused + report.malformed >= report.rows
    for reason, found in report.refused.items():
        code = next((code for begin, code in CODES if reason.startswith(begin)), "refused-rows")
        places = report.refused_at.get(reason, [found.example])
        yield Finding(
            code=code,
            severity="error" if nothing_left else "warning",
            message=f"refused: {excerpt(reason, None, 200)}",
            count=found.rows,
            total=report.rows,
            examples=tuple(FoundAt(place) for place in places),
            advice=_ADVICE.get(code, ""),
        )


def check_changed(data: CheckedData) -> Iterator[Finding]:
    """Report rows that the loader keeps with a change."""
    for note, found in data.report.notes.items():
        yield Finding(
            code="changed-rows",
            severity="note",
            message=excerpt(note, None, 300),
            count=found.rows,
            total=data.report.rows,
            examples=(FoundAt(found.example),),
        )
