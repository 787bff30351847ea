"""The text typed after `key=`: as Hydra's override, or as a sweep's values."""

import re
from itertools import accumulate
from typing import Any, Literal, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from rlhf_cli.config.escapes import resolve_escapes
from rlhf_cli.config.recipe import DEEPEST
from rlhf_cli.config.schema import Unfit, is_union, show, unmark
from rlhf_cli.config.values import scalar


class NotOneValue(ValueError):
    """The text is a sweep over several values."""


def parse_override(key: str, text: str) -> Override | None:
    """What Hydra's grammar makes of a setting; None if it is plain text to it.

    Brackets too deep in each other are no list that a key takes, and more than Hydra can read.
    """
    if not _shallow(text):
        return None
    try:
        return OverridesParser.create().parse_override(f"++{key}={text}")
    except (HydraException, ValueError):  # the latter for integers of more than 4300 digits
        return None


def _shallow(text: str) -> bool:
    steps = ((letter in "[{") - (letter in "]}") for letter in text)
    return max(accumulate(steps), default=0) <= DEEPEST


def override(kind: Any, key: str, text: str) -> str:
    """An override that sets a key to what was typed.

    Text fields take it as it stands; for others Hydra's grammar is tried first. Escapes are
    resolved where the key's annotation says so.

    Raises:
        NotOneValue: The text is a sweep, as `1,2` or `range(1,3)`.
    """
    bare, _ = unmark(kind)
    # a field that takes numbers too leaves the choice to the grammar
    other = is_union(bare) and (text[:1] in "[{" or {int, float} & set(get_args(bare)))
    any_text = bare is str or (is_union(bare) and str in get_args(bare) and not other)
    as_text = (any_text and not _quoted(text)) or (get_origin(bare) is Literal and "," not in text)
    parsed = None if as_text else parse_override(key, text)
    if parsed is None:
        return f"++{key}={quote(resolve_escapes(kind, text))}"
    if parsed.is_sweep_override():
        raise NotOneValue
    if "\\" not in text:
        return f"++{key}={text}"
    value = parsed.value()
    resolved = resolve_escapes(kind, value)
    return f"++{key}={text if resolved == value else _in_grammar(resolved)}"


def typed(value: Any) -> str:
    """A value as text that `override` takes for that very value."""
    if not isinstance(value, str):
        return _in_grammar(value)
    ambiguous = _quoted(value) or value[:1] in ("[", "{")
    return quote(value) if ambiguous and "'" not in value else value


def _in_grammar(value: Any) -> str:
    """A value in Hydra's grammar, which keeps a backslash in quotes as it is."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_in_grammar(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_in_grammar, value)) + "]"
    bare = not isinstance(value, str) or re.fullmatch(_BARE_WORD, value)
    return show(value) if bare else quote(value)


_BARE_WORD = re.compile(r"(?!(?:true|false|null|nan|inf)$)[a-z_][\w./-]*", re.IGNORECASE | re.ASCII)


def _quoted(text: str) -> bool:
    return bool(re.fullmatch(r"'[^']*'|\"[^\"]*\"", text, re.DOTALL))


def quote(text: str) -> str:
    """The text in the quotes of Hydra's grammar."""
    return str(QuotedString(text=text, quote=Quote.single).with_quotes())


def comma_for_point(kind: Any, text: str) -> str:
    """The number that was meant by `0,0001`, or nothing."""
    bare = unmark(kind)[0]
    parts = [unmark(part) for part in (get_args(bare) if is_union(bare) else [kind])]
    marks = next((marks for part, marks in parts if part is float), None)
    if marks is None or not re.fullmatch(r"-?0,\d+", text):
        return ""
    point = text.replace(",", ".")
    try:
        scalar(float, marks, float(point))
    except Unfit:
        return ""
    return point


def refused_sweep(kind: Any, key: str, text: str) -> str:
    """The line for several values where one is needed."""
    point = comma_for_point(kind, text)
    if point:
        return f"{key}: got {text}; need a number with a decimal point. Try {key}={point}"
    as_list = f", or write a list as {key}=[{text}]" if get_origin(unmark(kind)[0]) is list else ""
    return f"{key}: got {text}; need one value. For a run of each value add -m{as_list}"
