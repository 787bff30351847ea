"""Rows as one HTML page without network or scripts, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from rlhf_cli import __version__
from rlhf_cli.commands.data.views import RowView
from rlhf_cli.data.report import pluralize, to_utf8

TEMPLATE = Path(__file__).with_name("page.html.jinja")
LINE_END = Markup("<i>↵</i>\n")


def render_page(rows: Sequence[RowView], *, stage: str) -> str:
    """Return an HTML page of rows; every text in it is escaped."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"visible": _visible, "count": pluralize}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(rows=rows, stage=stage, version=__version__) + "\n"


def _visible(text: str) -> Markup:
    """Escape a text, also characters that are not seen or turn the direction of writing."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in to_utf8(text))
    return LINE_END.join(escape(line) for line in shown.split("\n"))
