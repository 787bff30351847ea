"""Records of runs made of formulas, for tests of the rules."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlhf_cli.config.schema import options
from rlhf_cli.diagnosis.diagnose import diagnose
from rlhf_cli.diagnosis.findings import Finding
from rlhf_cli.registry import COMMANDS
from rlhf_cli.runs.record import RunRecord

Curve = float | Callable[[int], float]
"""A constant, or a function of the step."""

STEPS = 40


def noise(step: int) -> float:
    """A number of -1 to 1 that looks random."""
    return ((step * 7919) % 1000) / 500 - 1


def make_record(
    stage: str,
    curves: Mapping[str, Curve],
    *,
    steps: int = STEPS,
    evaluations: Mapping[str, list[float]] | None = None,
    config: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    **more: Any,
) -> RunRecord:
    """Make the record of a finished run.

    Args:
        stage: of the run.
        curves: metric -> its course.
        steps: lines of training.
        evaluations: metric of held-out rows -> values, the first before the first step and the rest
            spread evenly.
        config: nested.
        data: counts of the training rows, as in the manifest.
        more: other fields of the record.
    """
    lines: list[dict[str, float]] = [{"step": 0}]
    lines += [
        {"step": step, **{name: _at(curve, step) for name, curve in curves.items()}}
        for step in range(1, steps + 1)
    ]
    for name, values in (evaluations or {}).items():
        for index, value in enumerate(values):
            lines[index * steps // max(1, len(values) - 1)][f"eval/{name}"] = value
    manifest = {"data": data or {}, **more.pop("manifest", {})}
    return RunRecord(
        folder=Path("runs/made"),
        stage=stage,
        status=more.pop("status", "complete"),
        config=dict(config or {}),
        manifest=manifest,
        metrics=lines,
        **more,
    )


def _at(curve: Curve, step: int) -> float:
    return float(curve(step) if callable(curve) else curve)


def examine(record: RunRecord) -> list[Finding]:
    """Diagnose a record; each override that is advised must be a key of its stage."""
    found = diagnose(record)
    keys = {*options(COMMANDS[record.stage].config), "loss_type"}
    words = [word for one in found for advice in one.advice for word in advice.split()]
    given = [word.strip("'").partition("=")[0] for word in words if "=" in word]
    assert {key for key in given if key not in keys} == set()
    return found


def find(record: RunRecord, code: str) -> Finding | None:
    """The finding of a code; None if no rule made it."""
    return next((one for one in examine(record) if one.code == code), None)


def alarms(record: RunRecord) -> list[str]:
    """Codes of problems and warnings."""
    return [one.code for one in examine(record) if one.severity in ("problem", "warning")]
