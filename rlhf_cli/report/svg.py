"""Elements of SVG as text; attributes and contents are escaped, control characters too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

from rlhf_cli.report.text import clean


def element(name: str, *inner: str | Markup, **attributes: object) -> Markup:
    """An element with attributes: `class_` is `class`, `stroke_width` is `stroke-width`."""
    given = [
        f' {key.rstrip("_").replace("_", "-")}="{escape(clean(number(value)))}"'
        for key, value in attributes.items()
        if value is not None
    ]
    content = "".join(part if isinstance(part, Markup) else escape(clean(part)) for part in inner)
    closed = f">{content}</{name}>" if content else "/>"
    return Markup(f"<{name}{''.join(given)}{closed}")


def number(value: object) -> str:
    """A place in at most one decimal; other values as they are."""
    if not isinstance(value, float):
        return str(value)
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text


def text(
    x: float, y: float, content: object, *, anchor: str = "start", class_: str = "t"
) -> Markup:
    """A line of text; `anchor` is `start`, `middle` or `end`."""
    where = None if anchor == "start" else anchor
    return element("text", str(content), x=x, y=y, text_anchor=where, class_=class_)


def title(content: str) -> Markup:
    """What is shown while the pointer is on the element around it."""
    return element("title", content)


def path(x: Sequence[float], y: Sequence[float]) -> str:
    """Data of a path through points."""
    places = (f"{number(a)} {number(b)}" for a, b in zip(x, y, strict=True))
    return "M" + "L".join(places)


def drawing(
    width: int, height: int, parts: Iterable[Markup], *, label: str, class_: str = "chart"
) -> Markup:
    """A whole drawing, as wide as its place on the page.

    Args:
        width: in its own units.
        height: in its own units.
        parts: elements in it.
        label: read out instead of the drawing.
        class_: of its style.
    """
    return element(
        "svg",
        Markup("").join(parts),
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=label,
        class_=class_,
    )
