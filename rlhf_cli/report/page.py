"""The page of one run, and of several: records in, one self-contained HTML file out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rlhf_cli import __version__
from rlhf_cli.diagnosis.diagnose import diagnose
from rlhf_cli.diagnosis.findings import Severity, of_severity
from rlhf_cli.report import compare, curves, facts, samples, settings
from rlhf_cli.report.charts import COLORS
from rlhf_cli.report.series import read_series
from rlhf_cli.report.text import clean, show_folder
from rlhf_cli.runs.manifest import ORIGINS
from rlhf_cli.runs.record import RunRecord

TEMPLATES = Path(__file__).parent / "templates"

ERROR_START = 60
"""Characters by which an error is found in the sentence of a finding."""

X_LABELS = {"ppo": "rollout", "grpo": "rollout"}
"""Stage -> what a step is."""


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _render(template: str, title: str, **values: Any) -> str:
    return _environment().get_template(template).render(
        title=title,
        style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        version=__version__,
        written=f"{datetime.now():%Y-%m-%d %H:%M}",
        **values,
    )  # fmt: skip


def run_page(record: RunRecord) -> str:
    """Page of one run.

    Args:
        record: of the run, in whatever state it is.
    """
    name = clean(record.folder.resolve().name, 80)
    groups = curves.single_run(read_series(record.metrics), X_LABELS.get(record.stage, "step"))
    changes, data = facts.changes(record), facts.data_views(record)
    changed, rest = settings.split_settings(record)
    shown = samples.view(record.samples, record.fixed_samples)
    manifest = facts.manifest_rows(record)
    findings = find(record, "problem", "warning", "note")
    contents = [
        ("diagnosis", "Diagnosis", True),
        ("evaluation", "Before and after", bool(changes)),
        *((f"curves-{k}", group.title, True) for k, group in enumerate(groups, start=1)),
        ("samples", "Prompts through time", bool(shown.fixed)),
        ("rollouts", "Rollouts", bool(shown.rollouts)),
        ("extremes", "Best and worst", bool(shown.best)),
        ("data", "Data", bool(data)),
        ("configuration", "Configuration", bool(changed or rest)),
        ("manifest", "Manifest", bool(manifest)),
    ]
    return _render(
        "run.html.j2",
        f"{record.stage or record.tool}: {name}",
        name=name,
        stage=clean(record.stage or record.tool, 40),
        status=record.status,
        status_words=facts.STATUS_WORDS[record.status],
        folder=show_folder(record.folder),
        headline=facts.headline(record),
        contents=[(id_, label) for id_, label, there in contents if there],
        error=_untold_error(record, findings),
        findings=findings,
        passed=find(record, "ok"),
        problems=[clean(line, 300) for line in record.problems],
        changes=changes,
        heads=facts.change_heads(record),
        has_intervals=any(c.before_interval or c.after_interval for c in changes),
        groups=groups,
        spikes=facts.spike_rows(record),
        samples=shown,
        data=data,
        changed=changed,
        rest=rest,
        known_defaults=bool(settings.defaults(record.stage)),
        has_origins=ORIGINS in record.manifest,
        manifest=manifest,
    )


def _untold_error(record: RunRecord, findings: Sequence[ShownFinding]) -> str:
    """What ended the run, unless the diagnosis says it."""
    error = clean(record.error, 2000)
    start = error[:ERROR_START]
    return "" if any(start in one.sentence for one in findings) else error


def compare_page(records: Sequence[RunRecord], sweep: compare.Sweep | None = None) -> str:
    """Page of several runs.

    Args:
        records: of the runs.
        sweep: whose jobs they are, or None.
    """
    names = compare.job_names(sweep.folder, records) if sweep else compare.run_names(records)
    styles = [f"c{k % COLORS}{' dashed' if k >= COLORS else ''}" for k in range(len(records))]
    columns, rows = compare.run_rows(records, names, styles)
    stages = {record.stage for record in records}
    x_label = X_LABELS.get(stages.pop(), "step") if len(stages) == 1 else "step"
    groups = curves.compared([read_series(record.metrics) for record in records], names, x_label)
    differing = settings.differences(records)
    findings = [
        (name, find(record, "problem", "warning"))
        for name, record in zip(names, records, strict=True)
    ]
    problems = [
        f"{name}: {line}"
        for name, record in zip(names, records, strict=True)
        for line in record.problems
    ]
    contents = [
        ("results", "Results", sweep is not None),
        ("parallel", "Keys and results", sweep is not None and bool(sweep.parallel)),
        ("runs", "Runs", True),
        ("keys", "Keys that differ", bool(differing)),
        *((f"curves-{k}", group.title, True) for k, group in enumerate(groups, start=1)),
    ]
    title = clean(sweep.folder.resolve().name, 80) if sweep else f"{len(records)} runs"
    return _render(
        "compare.html.j2",
        f"rlhf: {title}",
        name=title,
        subtitle=show_folder(sweep.folder) if sweep else ", ".join(names),
        contents=[(id_, label) for id_, label, there in contents if there],
        sweep=sweep,
        columns=columns,
        runs=rows,
        findings=[(run, found) for run, found in findings if found],
        problems=[clean(line, 300) for line in problems],
        differences=[one for one in differing if one.shared],
        partial=[one for one in differing if not one.shared],
        groups=groups,
    )


@dataclass(frozen=True)
class ShownFinding:
    """A finding of the diagnosis as it is shown.

    Attributes:
        tone: class of its color.
        mark: its severity in a word.
        sentence: what was found, with its number.
        cause: or empty.
        advice: overrides to try.
    """

    tone: str
    mark: str
    sentence: str
    cause: str
    advice: Sequence[str]


TONES: dict[str, str] = {"problem": "error", "warning": "warning", "note": "info", "ok": "good"}
"""Severity -> class of its color."""


def find(record: RunRecord, *severities: Severity) -> list[ShownFinding]:
    """The diagnosis of a run, the worst first; of all severities if none is named."""
    found = diagnose(record)
    return [
        ShownFinding(
            TONES[one.severity],
            one.severity,
            clean(one.sentence, 1000),
            clean(one.cause, 1000),
            [clean(override, 200) for override in one.advice],
        )
        for one in (of_severity(found, *severities) if severities else found)
    ]
