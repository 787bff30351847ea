"""Scatter plots and parallel coordinates as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from rlhf_cli.report import svg
from rlhf_cli.report.axes import Axis, make_axis, shown_range
from rlhf_cli.report.series import pick
from rlhf_cli.report.text import NONE

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 50.0, 452.0, 12.0, 200.0

MOST_POINTS = 400

STAGES = 4
"""Shades of the dots of a scatter plot, from early to late."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """Points of a scatter plot.

    Attributes:
        x: [n].
        y: [n].
        age: [n], 0 for the earliest step and 1 for the last.
        words: [n], shown under the pointer.
    """

    x: Sequence[float]
    y: Sequence[float]
    age: Sequence[float]
    words: Sequence[str]


def draw_scatter(points: Points, x_label: str, y_label: str) -> Markup:
    """Draw points, later ones darker; at most `MOST_POINTS`, evenly chosen."""
    kept = [int(index) for index in pick(range(len(points.x)), MOST_POINTS)]
    xs, ys = [points.x[k] for k in kept], [points.y[k] for k in kept]
    x = make_axis(min(xs), max(xs), LEFT + 6, RIGHT - 6, most=6)
    y = make_axis(*shown_range(ys), BOTTOM - 4, TOP, most=4)
    parts = [*_frame(x, y), svg.text(RIGHT, HEIGHT - 8.0, x_label, anchor="end", class_="t name")]
    for index, a, b in zip(kept, x.places(xs), y.places(ys), strict=True):
        shade = min(STAGES - 1, int(points.age[index] * STAGES))
        parts.append(
            svg.element(
                "circle",
                svg.title(points.words[index]),
                cx=a,
                cy=b,
                r=3.4,
                class_=f"point a{shade}",
            )
        )
    return svg.drawing(WIDTH, HEIGHT, parts, label=f"{y_label} against {x_label}")


def _frame(x: Axis, y: Axis) -> Iterator[Markup]:
    for tick, label in zip(y.ticks, y.labels, strict=True):
        place = y.place(tick)
        yield svg.element("line", x1=LEFT, x2=RIGHT, y1=place, y2=place, class_="grid")
        yield svg.text(LEFT - 7, place + 3.8, label, anchor="end")
    yield svg.element("line", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM, class_="axis")
    for tick, label in zip(x.ticks, x.labels, strict=True):
        place = x.place(tick)
        yield svg.element("line", x1=place, x2=place, y1=BOTTOM, y2=BOTTOM + 4, class_="axis")
        yield svg.text(place, BOTTOM + 16, label, anchor="middle")


@dataclass(frozen=True)
class Coordinate:
    """One axis of parallel coordinates: a key or a metric, and the value of each run.

    Attributes:
        name: of the key or metric.
        values: of each run; None where it has none. Numbers make a scale, others a list.
    """

    name: str
    values: Sequence[float | str | None]


WIDE, TALL = 960, 280

LABEL_ROOM = 18.0
"""Distance of two labels of an axis that do not touch."""

_UPPER, _LOWER = 44.0, 250.0


def draw_parallel(
    coordinates: Sequence[Coordinate], runs: Sequence[str], best: Sequence[int]
) -> Markup:
    """Draw a line for each run through its values on all axes.

    Args:
        coordinates: the axes, left to right.
        runs: name of each run.
        best: runs from the best to the worst; the first is drawn strongest, on top.
    """
    xs = [90 + _spread(k, len(coordinates)) * (WIDE - 180) for k in range(len(coordinates))]
    scales = [_places(each) for each in coordinates]
    parts: list[Markup] = []
    for rank in reversed(range(len(best))):
        run = best[rank]
        through = [(x, at[run]) for x, at in zip(xs, scales, strict=True) if at[run] is not None]
        if len(through) < 2:
            continue
        across, down = zip(*through, strict=True)
        words = ", ".join([runs[run], *(f"{c.name} {_show(c.values[run])}" for c in coordinates)])
        kind = "first" if rank == 0 else "upper" if rank < len(best) / 2 else "rest"
        parts.append(
            svg.element(
                "path",
                svg.title(words),
                d=svg.path(across, down),
                class_=f"parallel {kind}",
            )
        )
    for x, each in zip(xs, coordinates, strict=True):
        parts += _scale(x, each)
    return svg.drawing(
        WIDE, TALL, parts, label="parallel coordinates of the runs", class_="chart wide"
    )


def _show(value: float | str | None) -> str:
    if value is None:
        return NONE
    return str(value) if isinstance(value, str) else f"{value:.4g}".replace("-", "−")


def _levels(each: Coordinate) -> list[str]:
    """The different values of an axis that is no scale, in order of appearance."""
    return list(dict.fromkeys(_show(value) for value in each.values if value is not None))


def _is_scale(each: Coordinate) -> bool:
    return all(value is None or not isinstance(value, str) for value in each.values)


def _numbers(each: Coordinate) -> list[float]:
    return [value for value in each.values if isinstance(value, int | float)]


def _as_scale(each: Coordinate) -> tuple[float, float, bool]:
    """Ends of a scale, and whether it is logarithmic: for values over a factor of ten or more."""
    found = _numbers(each)
    low, high = min(found), max(found)
    logarithmic = low > 0 and high / low >= 10
    return low, high, logarithmic


def _places(each: Coordinate) -> list[float | None]:
    if not _is_scale(each):
        levels = _levels(each)
        at = {level: _share_to_place(_spread(k, len(levels))) for k, level in enumerate(levels)}
        return [None if value is None else at[_show(value)] for value in each.values]
    low, high, logarithmic = _as_scale(each)
    found: list[float | None] = []
    for value in each.values:
        if value is None:
            found.append(None)
            continue
        ends = (low, float(value), high)
        a, b, c = map(math.log, ends) if logarithmic else ends
        found.append(_share_to_place((b - a) / (c - a) if c > a else 0.5))
    return found


def _spread(index: int, count: int) -> float:
    return index / (count - 1) if count > 1 else 0.5


def _share_to_place(share: float) -> float:
    return _LOWER + share * (_UPPER - _LOWER)


def _scale(x: float, each: Coordinate) -> Iterator[Markup]:
    """The axis, its name above, and its ends or its values."""
    yield svg.element("line", x1=x, x2=x, y1=_UPPER, y2=_LOWER, class_="axis")
    yield svg.text(x, 18.0, each.name, anchor="middle", class_="t strong")
    places = _places(each)
    levels = {at: _show(value) for at, value in zip(places, each.values, strict=True) if at}
    last: float | None = None
    for at in sorted(levels):
        words = levels[at][:16]
        if at in (min(levels), max(levels)) and len(levels) > 1:
            below = 16.0 if at == max(levels) else -7.0
            yield svg.text(x, at + below, words, anchor="middle", class_="t halo")
        elif last is None or min(at - last, _LOWER - at) >= LABEL_ROOM:
            yield svg.text(x + 7, at + 4, words, class_="t halo")
        last = at
