"""Findings about the rows that the loader does not train on, by its own reasons."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_cli.data.checks.content import CheckedData
from rlhf_cli.data.checks.finding import MAX_EXAMPLES, Finding, FoundAt, Severity, excerpt
from rlhf_cli.data.records.responses import MULTI_TURN_NOTE

CODES = (
    ("chosen equals rejected", "chosen-equals-rejected"),
    ("all responses have the same tokens", "same-response-tokens"),
    ("all responses are the same within", "same-after-truncation"),
    ("the two transcripts have", "different-prompts"),
    ("empty response", "empty-response"),
    ("empty text", "empty-response"),
    ("no response within", "response-cut-off"),
    ("longer than ", "too-long"),
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
    shown = (line.partition(": ") for line in report.malformed_shown[:MAX_EXAMPLES])
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
    severity: Severity = "warning" if data.records else "error"
    for reason, places in data.refused.items():
        code = next((code for begin, code in CODES if reason.startswith(begin)), "refused-rows")
        yield Finding(
            code=code,
            severity=severity,
            message=f"left out: {excerpt(reason, None, 200)}",
            count=len(places),
            total=len(data.rows),
            examples=tuple(FoundAt(place) for place in places[:MAX_EXAMPLES]),
            advice=_ADVICE.get(code, ""),
        )


def check_changed(data: CheckedData) -> Iterator[Finding]:
    """Report rows that the loader keeps with a change."""
    for note, found in data.report.notes.items():
        several_turns = note == MULTI_TURN_NOTE
        yield Finding(
            code="several-turns" if several_turns else "changed-rows",
            severity="warning" if several_turns else "note",
            message=excerpt(note, None, 300),
            count=found.rows,
            total=data.report.rows,
            examples=(FoundAt(found.example),),
            advice="After the first turn that differs they answer different prompts; "
            "keep that turn alone as the response"
            if several_turns
            else "",
        )
