"""Numbers, times and foreign text as a report shows them."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import Any

from rlhf_cli.config.values import format_value
from rlhf_cli.console import shorten

NONE = "–"
"""Stands where there is no value."""

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def clean(text: object, most: int = 0) -> str:
    """Text of a file, fit for a page: control characters and lone surrogates are escaped.

    Args:
        text: is converted to a string.
        most: the middle of a longer text is left out; 0 keeps all.
    """
    plain = str(text)
    return shorten(plain, most or len(plain))


def show_number(value: float | None, unit: str = "") -> str:
    """A number in at most four digits, with the prefix or sign of its unit where it has one."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if unit == "share":
        digits = 1 if abs(value) >= 0.1 else 2
        return f"{100 * value:.{digits}f}".rstrip("0").rstrip(".").replace("-", "−") + " %"
    if unit == "bytes":
        return _with_prefix(value, "B")
    return _plain(value)


def _plain(value: float) -> str:
    size = abs(value)
    if value == 0:
        return "0"
    if size >= 1e6 or size < 1e-4:
        return _scientific(f"{value:.2e}")
    if size >= 1000:
        return f"{value:,.0f}".replace("-", "−")
    digits = 3 if size < 10 else 2 if size < 100 else 1
    digits = digits + 1 if size < 0.1 else digits
    text = f"{value:.{digits}f}"
    return (text.rstrip("0").rstrip(".") if float(text) == int(value) else text).replace("-", "−")


def show_bound(value: float, unit: str = "") -> str:
    """End of a range that somebody chose: as few digits as it has."""
    return f"{100 * value:g} %" if unit == "share" else f"{value:g}".replace("-", "−")


def _with_prefix(value: float, unit: str) -> str:
    for size, prefix in _PREFIXES:
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def show_tick(value: float, step: float, unit: str = "") -> str:
    """A label of an axis whose labels are `step` apart."""
    if unit == "bytes":
        return _with_prefix(value, "B")
    sign = "%" if unit == "share" else ""
    if unit == "share":
        value, step = 100 * value, 100 * step
    if abs(value) < step / 2:
        return f"0{sign}"
    if (step < 1e-4 and abs(value) < 1e-2) or abs(value) >= 1e9:
        return _scientific(f"{value:.3g}" if step >= 1 else f"{value:.1e}") + sign
    for size, prefix in _PREFIXES[2:]:
        if abs(value) >= 10_000 and step >= size:
            return f"{value / size:g}".replace("-", "−") + prefix + sign
    digits = max(0, math.ceil(-math.log10(step) - 1e-9)) if step < 1 else 0
    return f"{value:,.{digits}f}".replace("-", "−") + sign


def _scientific(text: str) -> str:
    """A number as 5e−5, not 5.0e-05."""
    mantissa, _, power = text.partition("e")
    if not power:
        return text.replace("-", "−")
    mantissa = mantissa.removesuffix(".0")
    return f"{mantissa}e{int(power)}".replace("-", "−")


def show_value(value: Any) -> str:
    """A value of the configuration, as one types it."""
    return clean(format_value(value)) if value not in ("", None) else NONE


def show_seconds(seconds: float) -> str:
    """A duration in its two largest units."""
    if not math.isfinite(seconds):
        return NONE
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    while parts and not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{number} {unit}" for number, unit in parts[:2] if number)


def show_folder(folder: Path) -> str:
    """A folder as one would type it here: relative to the working folder if it is in it."""
    path, here = folder.resolve(), Path.cwd()
    return clean(path.relative_to(here) if here in path.parents else path)


def show_time(text: object) -> str:
    """A time of a manifest, without fractions of a minute; other text as it is."""
    try:
        return datetime.fromisoformat(str(text)).strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return clean(text, 40) or NONE
