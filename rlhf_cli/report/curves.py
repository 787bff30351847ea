"""Panels of a report: which metrics share a chart, and what is said about each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from rlhf_cli.report.charts import Chart, Line, beyond, draw_chart
from rlhf_cli.report.glossary import METRICS, describe
from rlhf_cli.report.metric import GROUPS, Group, Metric
from rlhf_cli.report.series import Series
from rlhf_cli.report.text import clean, show_bound, show_number
from rlhf_cli.runs.record import EVAL

Curves = Mapping[str, Series]
"""Name of a metric -> its values, of one run."""

_SIDES = ("chosen", "rejected")
TOGETHER: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "rewards/chosen": ("Implicit rewards", {f"rewards/{side}": side for side in _SIDES}),
    "logps/chosen": ("Log-probs of responses", {f"logps/{side}": side for side in _SIDES}),
    "time/rollout": (
        "Time of the phases",
        {
            "time/rollout": "rollout",
            "time/wait": "waiting",
            "time/score": "scoring",
            "time/update": "updates",
        },
    ),
}
"""First metric of a chart with several -> its title, and the label of each metric."""

HELD_OUT_COLOR = 1
"""Color of the dots of held-out rows beside a single training curve."""

TRAINING = "training"
"""Label of the curve of a single run."""

RUNS_WITH_RAW = 3
"""With more runs in a chart, only smoothed values are drawn."""

POINTS_OF_A_CHART = 600
"""Points of all lines of a chart together."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A chart with what is said about it.

    Attributes:
        title: name of the quantity.
        names: metrics that it shows, as in `metrics.jsonl`.
        unit: of the values; empty for none.
        value: last value, or empty where there are several lines.
        change: first and last value of the smoothed curve.
        meaning: sentences on the quantity.
        advice: what a value or trend says.
        healthy: range of a healthy run in words, or empty.
        legend: class of the color and label of each line.
        notes: what the chart cannot show.
        chart: the drawing.
    """

    title: str
    names: str
    unit: str = ""
    value: str = ""
    change: str = ""
    meaning: str = ""
    advice: str = ""
    healthy: str = ""
    legend: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    chart: Markup = field(default_factory=Markup)


@dataclass(frozen=True)
class PanelGroup:
    """Panels under one heading, and the metrics that never changed.

    Attributes:
        title: the heading.
        panels: charts.
        constants: label, name and value of metrics with one value only.
    """

    title: str
    panels: Sequence[Panel]
    constants: Sequence[tuple[str, str, str]]


@dataclass
class _Drawn:
    """What one group has so far."""

    panels: list[Panel] = field(default_factory=list)
    constants: list[tuple[str, str, str]] = field(default_factory=list)


def single_run(curves: Curves, x_label: str = "step") -> list[PanelGroup]:
    """Panels of one run, in groups; training values as curves, held-out values as dots.

    Args:
        curves: of the run.
        x_label: what is counted.
    """
    groups: dict[Group, _Drawn] = {}
    partners = _partners(curves)
    joined = {name for _, labels in TOGETHER.values() for name in labels}
    for name in _ordered(curves, {*partners.values()}):
        head = describe(name)
        if name in joined and name not in TOGETHER:
            first = next(key for key, (_, labels) in TOGETHER.items() if name in labels)
            if first in curves:
                continue  # it is drawn in the chart of the first
        drawn = groups.setdefault(head.group, _Drawn())
        labels = TOGETHER[name][1] if name in TOGETHER else {name: ""}
        shown = [n for n in labels if n in curves]
        if len(shown) == 1 and _is_constant(curves[name], curves.get(partners.get(name, ""))):
            drawn.constants.append(_constant(head, name, curves[name]))
            continue
        drawn.panels.append(_panel_of_run(head, name, shown, curves, partners, x_label))
    return [
        PanelGroup(title, groups[group].panels, groups[group].constants)
        for group, title in GROUPS.items()
        if group in groups
    ]


def compared(
    runs: Sequence[Curves], names: Sequence[str], x_label: str = "step"
) -> list[PanelGroup]:
    """Panels of several runs: a chart for each metric, with a line for each run.

    Args:
        runs: curves of each run.
        names: of the runs.
        x_label: what is counted.
    """
    every: dict[str, Series] = {}
    for curves in runs:
        every |= {name: series for name, series in curves.items() if name not in every}
    groups: dict[Group, _Drawn] = {}
    for name in _ordered(every, set()):
        head = describe(name)
        drawn = groups.setdefault(head.group, _Drawn())
        found = [curves.get(name) for curves in runs]
        lines = _run_lines(found, names, head, dots=name.startswith(EVAL))
        if not lines:
            continue
        values = {line.series.first for line in lines}
        if len(values) == 1 and all(_is_constant(line.series) for line in lines):
            drawn.constants.append(_constant(head, name, lines[0].series))
            continue
        drawn.panels.append(_panel(_titled(head, name), [name], head, lines, x_label))
    return [
        PanelGroup(title, groups[group].panels, groups[group].constants)
        for group, title in GROUPS.items()
        if group in groups
    ]


def _run_lines(
    found: Sequence[Series | None], names: Sequence[str], head: Metric, *, dots: bool
) -> list[Line]:
    count = sum(series is not None for series in found)
    most = max(40, POINTS_OF_A_CHART // max(1, count))
    lines = []
    for color, (series, name) in enumerate(zip(found, names, strict=True)):
        if series is None or not len(series.finite):
            continue
        shown = series if count <= RUNS_WITH_RAW or dots or head.exact else series.smoothed
        exact = head.exact or shown is not series
        lines.append(Line(label=name, series=shown, color=color, dots=dots, exact=exact, most=most))
    return lines


def _titled(head: Metric, name: str) -> str:
    return f"{head.label}, held out" if name.startswith(EVAL) else head.label


def _ordered(curves: Mapping[str, Series], without: set[str]) -> Iterator[str]:
    """Names of metrics in the order of the glossary, foreign ones last; held-out ones second."""
    order = {name: index for index, name in enumerate(METRICS)}
    place = order["objective/scores"] + 0.5  # terms of the reward follow the score

    def key(name: str) -> tuple[float, bool]:
        plain = name.removeprefix(EVAL)
        at = place if plain.startswith("score/") else order.get(plain, len(order))
        return at, name.startswith(EVAL)

    names = [name for name in curves if name not in without and not _repeats_score(name, curves)]
    yield from sorted(names, key=key)


def _repeats_score(name: str, curves: Mapping[str, Series]) -> bool:
    """Whether a term of the reward is the whole score."""
    whole = curves.get("objective/scores")
    if not name.startswith("score/") or whole is None:
        return False
    return curves[name].values == whole.values


def _partners(curves: Curves) -> dict[str, str]:
    """Training metric -> the held-out metric that is drawn as dots in its chart."""
    found = {}
    generates = "objective/scores" in curves  # the held-out loss is another quantity
    for name in curves:
        if not name.startswith(EVAL) or (generates and name == f"{EVAL}loss"):
            continue
        plain = name.removeprefix(EVAL)
        train = plain if plain in curves else describe(plain).train_name
        if train in curves:
            found[train] = name
    return found


def _is_constant(series: Series, other: Series | None = None) -> bool:
    """Whether all finite values are equal, those of held-out rows among them."""
    values = [*series.finite.values, *(other.finite.values if other else ())]
    return not values or min(values) == max(values)


def _constant(head: Metric, name: str, series: Series) -> tuple[str, str, str]:
    value = show_number(series.last, head.unit) if len(series.finite) else "not finite"
    return clean(_titled(head, name), 80), clean(name, 80), _with_unit(value, head.unit)


def _with_unit(value: str, unit: str) -> str:
    return value if unit in ("", "share", "bytes") else f"{value} {unit}"


def _panel_of_run(
    head: Metric,
    name: str,
    shown: Sequence[str],
    curves: Curves,
    partners: Mapping[str, str],
    x_label: str,
) -> Panel:
    several = len(shown) > 1
    lines = []
    for color, each in enumerate(shown):
        held_out = each.startswith(EVAL)
        label = TOGETHER[name][1][each] if several else "held out" if held_out else TRAINING
        own = HELD_OUT_COLOR if held_out else color
        exact = describe(each).exact
        lines.append(Line(label=label, series=curves[each], color=own, dots=held_out, exact=exact))
        if each in partners:
            label = f"{label}, held out" if several else "held out"
            own = color if several else HELD_OUT_COLOR
            lines.append(Line(label=label, series=curves[partners[each]], color=own, dots=True))
    title = (
        TOGETHER[name][0]
        if several
        else _titled(head, name)
        if name not in partners
        else head.label
    )
    names = [n for each in shown for n in (each, partners.get(each, "")) if n]
    return _panel(title, names, head, lines, x_label, [describe(each) for each in shown])


def _panel(
    title: str,
    names: Sequence[str],
    head: Metric,
    lines: Sequence[Line],
    x_label: str,
    metrics: Sequence[Metric] = (),
) -> Panel:
    chart = Chart(title=title, unit=head.unit, lines=lines, healthy=head.healthy, x_label=x_label)
    held_out = sum(line.dots for line in lines)
    single = held_out <= 1 and len(lines) - held_out <= 1
    main = lines[0].series
    value, change = _ends(main, head) if single and len(main.finite) else ("", "")
    said = metrics or [head]
    return Panel(
        title=clean(title, 80),
        names=_names(names),
        unit="" if head.unit in ("share", "bytes") else head.unit,
        value=value,
        change=change,
        meaning=" ".join(dict.fromkeys(metric.meaning for metric in said)),
        advice=" ".join(dict.fromkeys(metric.advice for metric in said if metric.advice)),
        healthy=_healthy(head),
        legend=_legend(lines),
        notes=_notes(lines),
        chart=draw_chart(chart),
    )


def _names(names: Sequence[str]) -> str:
    """Names of metrics; those of held-out rows are not repeated where the training's are given."""
    train = [name for name in names if not name.startswith(EVAL)]
    several = len(train) > 1
    shown = " · ".join(clean(name, 80) for name in (train if several else names))
    return f"{shown} · {EVAL}…" if several and len(train) < len(names) else shown


def _ends(series: Series, head: Metric) -> tuple[str, str]:
    """The last value of the drawn curve, and where it came from."""
    last, first = series.last if head.exact else series.smoothed.last, series.first
    unit = head.unit
    noise = 1e-5 * (max(series.finite.values) - min(series.finite.values))
    value = show_number(last if abs(last) > noise else 0.0, unit)
    if len(series.finite) < 2:
        return value, ""
    return value, f"from {show_number(first if abs(first) > noise else 0.0, unit)}"


def _healthy(head: Metric) -> str:
    if head.healthy is None:
        return ""
    low, high = head.healthy
    if head.better == "higher" or (head.unit == "share" and high == 1):
        return f"above {show_bound(low, head.unit)}"
    if low == 0:
        return f"below {show_bound(high, head.unit)}"
    return f"{show_bound(low, head.unit)} to {show_bound(high, head.unit)}"


def _legend(lines: Sequence[Line]) -> list[tuple[str, str]]:
    """Nothing for a single curve of training values, which needs no explanation."""
    if [line.label for line in lines] == [TRAINING]:
        return []
    return [
        (f"{line.style}{' dots' if line.dots else ''}", clean(line.label, 60)) for line in lines
    ]


def _notes(lines: Sequence[Line]) -> list[str]:
    """Values that are not finite or lie beyond the axis, in words."""
    found = []
    for line in lines:
        of = f" ({line.label})" if len(lines) > 1 else ""
        lost, out = line.series.lost, beyond(line.series)
        if len(lost):
            count = "1 value is" if len(lost) == 1 else f"{len(lost):,} values are"
            found.append(f"{count} not finite, the first at step {lost[0]:,.0f}{of}.")
        if len(out):
            extreme = max(out, key=abs)
            count = "1 value lies" if len(out) == 1 else f"{len(out):,} values lie"
            found.append(f"{count} beyond the axis, up to {show_number(extreme)}{of}.")
    return found
