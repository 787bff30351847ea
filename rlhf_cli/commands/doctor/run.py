"""`rlhf doctor`: what happened in runs, or whether a reward model is good enough for a policy."""

from collections.abc import Sequence
from typing import Any

from rlhf_cli.commands.doctor.config import DoctorConfig
from rlhf_cli.config.command import load_function
from rlhf_cli.console import print_result, shorten
from rlhf_cli.diagnosis.diagnose import diagnose
from rlhf_cli.diagnosis.findings import ORDER, Finding, of_severity, summary
from rlhf_cli.runs.record import RunRecord, read_record

PROBLEM_FOUND = 1
"""Exit code when a run has a problem."""

MEASURE_REWARD = "rlhf_cli.commands.doctor.reward_model:run"
"""Measures a reward model on a policy; it loads models, and is imported only then."""


def run(cfg: DoctorConfig) -> int:
    """Diagnose runs, or measure a reward model; returns the exit code."""
    if cfg.measures_reward:
        return int(load_function(MEASURE_REWARD)(cfg) or 0)
    records = [read_record(folder) for folder in cfg.runs]
    findings = [diagnose(record) for record in records]
    pages = [_page(*both) for both in zip(records, findings, strict=True)]
    print_result("\n\n".join(pages), _to_json(records, findings))
    bad = any(of_severity(found, "problem") for found in findings)
    return PROBLEM_FOUND if bad else 0


def _page(record: RunRecord, findings: Sequence[Finding]) -> str:
    """What is said about a run: a headline, the findings, and what could not be read."""
    steps = int(record.metrics[-1]["step"]) if record.metrics else 0
    words = [record.stage or "unknown stage", record.status, f"{steps} steps"]
    if record.tool != "rlhf":
        words.append(f"of {record.tool}")
    lines = [f"{record.folder}: {', '.join(words)}", summary(findings)]
    lines += [_line(one) for one in of_severity(findings, "problem", "warning", "note")]
    unremarkable = of_severity(findings, "ok")
    if unremarkable:
        lines.append("checked and unremarkable:")
        lines += [f"  {one.text}" for one in unremarkable]
    lines += [f"not read: {shorten(problem)}" for problem in record.problems]
    return "\n".join(lines)


def _line(finding: Finding) -> str:
    return f"{finding.severity}: {finding.text} [{finding.code}]"


def _to_json(records: Sequence[RunRecord], findings: Sequence[Sequence[Finding]]) -> dict[str, Any]:
    runs = [
        {
            "run": str(record.folder),
            "tool": record.tool,
            "stage": record.stage,
            "status": record.status,
            "healthy": not of_severity(found, "problem"),
            "findings": [one.to_dict() for one in of_severity(found, *ORDER)],
            "unread": record.problems,
        }
        for record, found in zip(records, findings, strict=True)
    ]
    return {"healthy": all(run["healthy"] for run in runs), "runs": runs}
