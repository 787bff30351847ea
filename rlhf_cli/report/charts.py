"""Line charts of metrics as inline SVG, which needs no script and takes the colors of the page."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from markupsafe import Markup

from rlhf_cli.report import svg
from rlhf_cli.report.axes import Axis, make_axis, shown_range
from rlhf_cli.report.series import Series, pick
from rlhf_cli.report.text import NONE, show_bound, show_number

WIDTH, HEIGHT = 460, 204
LEFT, RIGHT, TOP, BOTTOM = 50.0, 452.0, 10.0, 172.0
"""Borders of the plotted area."""

COLORS = 8
"""Colors of lines; more lines begin with the first color again, dashed."""

HOVER_STRIPS = 40
"""Stripes of a chart that show their values under the pointer."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve of a chart.

    Attributes:
        label: in the legend.
        series: its values.
        color: number of its color, from 0.
        dots: evaluation points, drawn as dots with a thin line between them.
        exact: drawn as they are, without smoothing.
        most: points drawn.
    """

    label: str
    series: Series
    color: int = 0
    dots: bool = False
    exact: bool = False
    most: int = 240

    @property
    def style(self) -> str:
        """Class of its color, and of its dashes."""
        dashed = " dashed" if self.color >= COLORS else ""
        return f"c{self.color % COLORS}{dashed}"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What a line chart shows.

    Attributes:
        title: for those who cannot see the chart.
        unit: of the values.
        lines: those with at least one finite value are drawn.
        healthy: range of a healthy run, or None.
        x_label: what is counted on the x axis.
    """

    title: str
    unit: str = ""
    lines: Sequence[Line] = field(default_factory=list)
    healthy: tuple[float, float] | None = None
    x_label: str = "step"


def draw_chart(chart: Chart) -> Markup:
    """Draw a chart; empty if no line has a finite value."""
    lines = [line for line in chart.lines if len(line.series.finite)]
    if not lines:
        return Markup("")
    x, y = _x_axis(lines), _y_axis(chart, lines)
    parts = [*_band(chart, y), *_grid(x, y, chart.x_label)]
    for line in lines:
        parts += _draw_dots(line, x, y) if line.dots else _draw_line(line, x, y)
    parts += _lost(chart.lines, x)
    parts += _hover(chart, lines, x)
    return svg.drawing(WIDTH, HEIGHT, parts, label=f"{chart.title}: {_summary(chart, lines)}")


def _summary(chart: Chart, lines: Sequence[Line]) -> str:
    ends = (
        f"{line.label} from {show_number(line.series.first, chart.unit)} to "
        f"{show_number(line.series.last, chart.unit)}"
        for line in lines
    )
    return ", ".join(ends)


def _x_axis(lines: Sequence[Line]) -> Axis:
    low = min(line.series.finite.steps[0] for line in lines)
    high = max(line.series.finite.steps[-1] for line in lines)
    return make_axis(low, high, LEFT + 2, RIGHT - 4, whole=True, tight=True, most=6)


def _y_axis(chart: Chart, lines: Sequence[Line]) -> Axis:
    ranges = [shown_range(line.series.finite.values) for line in lines]
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    if chart.healthy is not None:
        low, high = _toward_band(low, high, chart.healthy)
    if chart.unit == "share" and low >= 0 and high <= 1 and high - low > 0.4:
        low, high = 0.0, 1.0
    axis = make_axis(low, high, BOTTOM, TOP, unit=chart.unit, most=4)
    if chart.unit == "share" and low >= 0 and high <= 1 and (axis.low < 0 or axis.high > 1):
        return make_axis(max(0, axis.low), min(1, axis.high), BOTTOM, TOP, unit="share", most=4)
    return axis


def _toward_band(low: float, high: float, band: tuple[float, float]) -> tuple[float, float]:
    """Let a range reach into a band that is near, so that its edge is seen."""
    span = max(high - low, 0.25 * (band[1] - band[0]))
    if low > band[1] or band[1] < high:
        low = min(low, band[1] - 0.1 * span) if low - band[1] < 2 * span else low
    if high < band[0] or low < band[0]:
        high = max(high, band[0] + 0.1 * span) if band[0] - high < 2 * span else high
    return low, high


def _band(chart: Chart, y: Axis) -> Iterator[Markup]:
    """The healthy range as a shaded area, with its name where there is room."""
    if chart.healthy is None:
        return
    low, high = (min(max(edge, y.low), y.high) for edge in chart.healthy)
    top, bottom = y.place(high), y.place(low)
    if bottom - top < 1:
        return
    words = " to ".join(show_bound(edge, chart.unit) for edge in chart.healthy)
    yield svg.element(
        "rect",
        svg.title(f"healthy: {words}"),
        x=LEFT,
        y=top,
        width=RIGHT - LEFT,
        height=bottom - top,
        class_="band",
    )


def _grid(x: Axis, y: Axis, x_label: str) -> Iterator[Markup]:
    for tick, label in zip(y.ticks, y.labels, strict=True):
        place = y.place(tick)
        strong = "axis" if tick == 0 or tick == y.low else "grid"
        yield svg.element("line", x1=LEFT, x2=RIGHT, y1=place, y2=place, class_=strong)
        yield svg.text(LEFT - 7, place + 3.8, label, anchor="end")
    for tick, label in zip(x.ticks, x.labels, strict=True):
        place = x.place(tick)
        yield svg.element("line", x1=place, x2=place, y1=BOTTOM, y2=BOTTOM + 4, class_="axis")
        yield svg.text(place, BOTTOM + 16, label, anchor="middle")
    yield svg.text(RIGHT, HEIGHT - 3.0, x_label, anchor="end", class_="t name")


def _draw_line(line: Line, x: Axis, y: Axis) -> Iterator[Markup]:
    """Raw values thin, smoothed values thick; a single value as a dot."""
    raw = line.series.thinned(line.most)
    places = x.places(raw.steps), y.places(raw.values)
    if len(raw) == 1:
        yield _dot(line, places[0][0], places[1][0], 4.0, svg.title(_point(line, 0)))
        return
    smooth = line.series.finite if line.exact else line.series.smoothed
    same = smooth is line.series.finite
    if not same:
        yield svg.element("path", d=svg.path(*places), class_=f"raw {line.style}")
        smooth = smooth.thinned(line.most // 2)
        places = x.places(smooth.steps), y.places(smooth.values)
    yield svg.element(
        "path", svg.title(line.label), d=svg.path(*places), class_=f"line {line.style}"
    )


def _draw_dots(line: Line, x: Axis, y: Axis) -> Iterator[Markup]:
    shown = line.series.thinned(60)
    places = x.places(shown.steps), y.places(shown.values)
    if len(shown) > 1:
        yield svg.element("path", d=svg.path(*places), class_=f"between {line.style}")
    for a, b in zip(*places, strict=True):
        yield _dot(line, a, b, 3.6)


def _dot(line: Line, x: float, y: float, radius: float, *inner: Markup) -> Markup:
    place = {"cx": x, "cy": y, "r": radius}
    return svg.element("circle", *inner, **place, class_=f"dot {line.style}")


def _point(line: Line, index: int) -> str:
    found = line.series.finite
    return f"step {found.steps[index]:g}: {show_number(found.values[index])}"


def _lost(lines: Sequence[Line], x: Axis) -> Iterator[Markup]:
    """A mark on the x axis at each step with a value that is not finite."""
    lost = {round(x.place(step)) for line in lines for step in line.series.lost}
    for place in sorted(lost):
        mark = f"M{place - 4} {BOTTOM - 4}l8 8m0 -8l-8 8"
        yield svg.element("path", svg.title("not finite"), d=mark, class_="lost")


def _hover(chart: Chart, lines: Sequence[Line], x: Axis) -> Iterator[Markup]:
    """Stripes over the chart that name step and values under the pointer."""
    every = sorted({step for line in lines for step in line.series.finite.steps})
    steps = pick(every, HOVER_STRIPS)
    places = x.places(steps)
    middles = [(a + b) / 2 for a, b in pairwise(places)]
    for step, left, right in zip(steps, [LEFT, *middles], [*middles, RIGHT], strict=True):
        yield svg.element(
            "rect",
            svg.title(_values_at(chart, lines, step)),
            x=left,
            y=TOP,
            width=right - left,
            height=BOTTOM - TOP,
            class_="h",
        )


def _values_at(chart: Chart, lines: Sequence[Line], step: float) -> str:
    shown = [f"{chart.x_label} {step:,.0f}"]
    for line in lines:
        found = line.series.finite
        value = value_at(found, step)
        if line.dots and step not in found.steps:
            continue
        shown.append(f"{line.label}: {NONE if value is None else show_number(value, chart.unit)}")
    return "\n".join(shown)


def value_at(series: Series, step: float) -> float | None:
    """Value at a step, or at the last one before; None before the first."""
    index = bisect_right(series.steps, step) - 1
    return None if index < 0 else series.values[index]


def beyond(series: Series) -> list[float]:
    """Values that lie beyond the shown range of the y axis."""
    values = series.finite.values
    if not values:
        return []
    low, high = shown_range(values)
    return [value for value in values if not low <= value <= high]
