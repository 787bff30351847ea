"""Facts of a run from its manifest: outcome, evaluation before and after, data, machine."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from rlhf_cli.report.glossary import describe
from rlhf_cli.report.metric import Metric
from rlhf_cli.report.text import NONE, clean, show_number, show_seconds, show_time, show_value
from rlhf_cli.runs.record import RunRecord

Facts = list[tuple[str, str]]
"""Label and value."""

STATUS_WORDS = {
    "complete": "complete",
    "running": "still running",
    "interrupted": "interrupted",
    "failed": "failed",
    "unknown": "status unknown",
}


def headline(record: RunRecord) -> Facts:
    """What a reader wants to know first: model, data, length, time, device."""
    known, options = record.manifest, record.options
    starts = known.get("starts")
    started = starts[0] if isinstance(starts, list) and starts else ""
    steps = known.get("steps") or last_step(record)
    facts = [
        ("Model", _short_path(options.get("model.path"))),
        ("Data", _short_path(options.get("data.path"))),
        ("Steps", f"{steps:,}" if isinstance(steps, int) else ""),
        ("Time", _seconds(known.get("seconds"))),
        ("Started", show_time(started) if started else ""),
        ("Device", _device(known)),
        ("Peak memory", _bytes(known.get("peak_memory_bytes"))),
    ]
    return [(label, value) for label, value in facts if value]


def last_step(record: RunRecord) -> int | None:
    """The last step that has metrics; None without any."""
    return int(max(line["step"] for line in record.metrics)) if record.metrics else None


def _short_path(value: object) -> str:
    """The last two folders of an absolute path; a hub id or shipped name as it is."""
    text = show_value(value) if isinstance(value, list | dict) else str(value or "")
    parts = PurePath(text).parts
    short = "/".join(parts[-2:]) if text.startswith("/") and len(parts) > 2 else text
    return clean(short, 120)


def _seconds(value: object) -> str:
    return show_seconds(float(value)) if isinstance(value, int | float) else ""


def _bytes(value: object) -> str:
    return show_number(float(value), "bytes") if isinstance(value, int | float) else ""


def _device(known: Mapping[str, Any]) -> str:
    count = known.get("processes", 1)
    device = clean(known.get("device", ""), 40)
    return f"{count} × {device}" if device and isinstance(count, int) and count > 1 else device


@dataclass(frozen=True)
class Change:
    """A held-out metric before the first step and after the last one.

    Attributes:
        label: in words.
        name: in `metrics.jsonl`, without `eval/`.
        before: value.
        after: value.
        before_interval: 95 % confidence interval, or empty.
        after_interval: 95 % confidence interval, or empty.
        change: difference, with its sign.
        verdict: `better`, `worse` or empty, where a direction is known.
        unit: of the values.
    """

    label: str
    name: str
    before: str
    after: str
    before_interval: str
    after_interval: str
    change: str
    verdict: str
    unit: str


NO_RESULTS = ("runtime", "samples_per_second", "steps_per_second", "num_tokens")
"""Metrics of another trainer's evaluation that say nothing about the model."""


def change_heads(record: RunRecord) -> tuple[str, str]:
    """Heads of the two columns of `changes`; the second is empty after only one evaluation."""
    lines = record.evaluations
    if _numbers(record.manifest.get("after")) or not lines:
        return "Before", "After"
    last = f"Step {lines[-1]['step']:,.0f}" if len(lines) > 1 else ""
    return f"Step {lines[0]['step']:,.0f}", last


def changes(record: RunRecord) -> list[Change]:
    """Held-out metrics before and after; of an unfinished run, those of its last evaluation."""
    before, after = _ends(record)
    known = record.manifest.get("intervals")
    intervals = known if isinstance(known, Mapping) else {}
    found = []
    for name in (name for name in dict.fromkeys((*before, *after)) if name not in NO_RESULTS):
        head, first, last = describe(name), before.get(name), after.get(name)
        unit = head.unit
        found.append(
            Change(
                label=clean(head.label, 60),
                name=clean(name, 60),
                before=show_number(first, unit),
                after=show_number(last, unit),
                before_interval=_interval(intervals.get("before"), name, unit),
                after_interval=_interval(intervals.get("after"), name, unit),
                change=_difference(first, last, unit),
                verdict=_verdict(first, last, _direction(record, head)),
                unit="" if unit in ("share", "bytes") else unit,
            )
        )
    return found


def _direction(record: RunRecord, head: Metric) -> str:
    """Direction of an improvement.

    A score is to rise where responses are trained on, and has no direction elsewhere.
    """
    raises = record.stage in ("ppo", "grpo") or bool(record.options.get("online"))
    return describe(head.train_name).better if raises and head.train_name else head.better


def _ends(record: RunRecord) -> tuple[dict[str, float], dict[str, float]]:
    before, after = (_numbers(record.manifest.get(key)) for key in ("before", "after"))
    if after:
        return before, after
    lines = [{k: v for k, v in line.items() if k != "step"} for line in record.evaluations]
    if not lines:
        return {}, {}
    return lines[0], lines[-1] if len(lines) > 1 else {}


def _numbers(value: object) -> dict[str, float]:
    if not isinstance(value, Mapping):
        return {}
    return {str(k): v for k, v in value.items() if isinstance(v, int | float)}


def _interval(of_metrics: object, name: str, unit: str) -> str:
    bounds = of_metrics.get(name) if isinstance(of_metrics, Mapping) else None
    if not isinstance(bounds, Sequence) or isinstance(bounds, str) or len(bounds) != 2:
        return ""
    if not all(isinstance(bound, int | float) for bound in bounds):
        return ""
    return f"{show_number(bounds[0], unit)} to {show_number(bounds[1], unit)}"


def _difference(first: float | None, last: float | None, unit: str) -> str:
    if first is None or last is None:
        return NONE
    shown = show_number(last - first, unit).replace(" %", " points")
    return shown if last <= first or shown == NONE else f"+{shown}"


def _verdict(first: float | None, last: float | None, better: str) -> str:
    if first is None or last is None or not better or first == last:
        return ""
    if not (first < last or last < first):  # NaN
        return ""
    return "better" if (last > first) == (better == "higher") else "worse"


@dataclass(frozen=True)
class DataView:
    """What the manifest says of some rows.

    Attributes:
        role: training or held-out.
        files: names.
        facts: counts.
        losses: reasons why rows were refused, changed or cut: reason, rows, first place.
    """

    role: str
    files: str
    facts: Facts
    losses: Sequence[tuple[str, str, str]]


def data_views(record: RunRecord) -> list[DataView]:
    """The data reports of training and held-out rows."""
    pairs = (("Training rows", "data"), ("Held-out rows", "held_out_data"))
    return [
        _data_view(role, found)
        for role, key in pairs
        if isinstance(found := record.manifest.get(key), Mapping)
    ]


_COUNTS = {
    "kind": "Kind of rows",
    "rows": "Rows read",
    "kept": "Rows kept",
    "malformed": "Malformed rows",
    "held_out": "Held out of these",
    "examples": "Examples",
    "tokens": "Tokens",
    "trained_tokens": "Tokens in the loss",
    "text_bytes": "Bytes of text",
}


def _data_view(role: str, found: Mapping[str, Any]) -> DataView:
    facts = [
        (label, f"{value:,}" if isinstance(value, int) else clean(value, 60))
        for key, label in _COUNTS.items()
        if (value := found.get(key))
    ]
    if found.get("tokens") and found.get("trained_tokens"):
        facts.append(("Share in the loss", show_number(_ratio(found), "share")))
    lengths = found.get("lengths")
    if isinstance(lengths, Mapping) and lengths:
        shown = [f"{value} ({_percentile(p)})" for p, value in lengths.items()]
        facts.append(("Tokens of a row", clean(", ".join(shown), 120)))
    files = found.get("files")
    names = ", ".join(map(str, files)) if isinstance(files, list) else ""
    return DataView(role, clean(names, 300), facts, _losses(found))


def _ratio(found: Mapping[str, Any]) -> float:
    try:
        return float(found["trained_tokens"]) / float(found["tokens"])
    except (TypeError, ValueError, ZeroDivisionError):
        return float("nan")


def _percentile(p: object) -> str:
    return {"50": "median", "100": "longest"}.get(str(p), f"p{p}")


def _losses(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    for key, head in (("refused", "refused"), ("notes", "changed")):
        for reason, count in _items(found.get(key)):
            words = f"{head}: {clean(reason, 200)}"
            rows.append((words, _count(count, "rows"), clean(count.get("example", ""), 120)))
    for end, count in _items(found.get("cut")):
        rows.append((f"cut at the {clean(end, 60)}", _count(count, "rows"), ""))
    shown = found.get("malformed_shown")
    for place in shown if isinstance(shown, list) else []:
        rows.append(("malformed", "", clean(place, 200)))
    return rows


def _items(value: object) -> list[tuple[str, Mapping[str, Any]]]:
    if not isinstance(value, Mapping):
        return []
    return [(str(key), count) for key, count in value.items() if isinstance(count, Mapping)]


def _count(found: Mapping[str, Any], key: str) -> str:
    value = found.get(key)
    return f"{value:,}" if isinstance(value, int) else ""


MOST_SPIKES, MOST_ROWS = 12, 4


def spike_rows(record: RunRecord) -> list[tuple[str, str, str, str]]:
    """Steps of a sudden loss: step, loss, loss before, and the rows with the highest loss."""
    found = []
    for line in record.spikes[:MOST_SPIKES]:
        step, loss, before = (line.get(name) for name in ("step", "loss", "before"))
        rows = line.get("rows")
        named = [clean(row, 80) for row in rows[:MOST_ROWS]] if isinstance(rows, list) else []
        if all(isinstance(value, int | float) for value in (step, loss, before)):
            found.append((f"{step:,}", show_number(loss), show_number(before), ", ".join(named)))
    return found


_SHOWN_ELSEWHERE = ("data", "held_out_data", "before", "after", "intervals", "origins", "inputs")


def manifest_rows(record: RunRecord) -> Facts:
    """Everything else that the manifest says, as lines of key and value."""
    rows: Facts = []
    for key, value in record.manifest.items():
        if key == "argv" and isinstance(value, list):
            rows.append(("command line", clean(shlex.join(["rlhf", *map(str, value)]), 2000)))
        elif key == "peak_memory_bytes":
            rows.append((key, _bytes(value) or clean(value, 100)))
        elif key not in _SHOWN_ELSEWHERE:
            rows += _flat(clean(key, 100), value)
    return rows + _input_rows(record.manifest.get("inputs"))


def _flat(key: str, value: Any) -> Facts:
    if isinstance(value, Mapping):
        return [row for k, v in value.items() for row in _flat(f"{key}.{clean(k, 100)}", v)]
    return [(key, show_value(value)[:400])] if value not in ("", None, []) else []


def _input_rows(inputs: object) -> Facts:
    """Files that the run read, with their size."""
    if not isinstance(inputs, Mapping):
        return []
    return [
        (f"input {clean(key, 60)}", f"{clean(path, 300)} ({_bytes(state.get('bytes'))})")
        for key, files in inputs.items()
        if isinstance(files, Mapping)
        for path, state in files.items()
        if isinstance(state, Mapping)
    ]
