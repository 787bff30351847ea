"""The text typed after `key=`: one value or several, as an override in Hydra's grammar."""

import re
from itertools import accumulate
from typing import Any, Literal, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override as HydraOverride
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from rlhf_cli.config.schema import (
    Escapes,
    InvalidValue,
    field_types,
    is_group,
    is_union,
    split_annotated,
)
from rlhf_cli.config.values import check_scalar, format_value, member
from rlhf_cli.config.yaml_files import DEEPEST


class SeveralValues(ValueError):
    """The text is a sweep over several values."""


def parse_override(key: str, text: str) -> HydraOverride | None:
    """Parse `key=text` by Hydra's grammar; None if it is plain text to it.

    Text with brackets nested deeper than any option takes, and than Hydra can read, is plain.
    """
    if not _shallow(text):
        return None
    try:
        return OverridesParser.create().parse_override(f"++{key}={text}")
    except (HydraException, ValueError):  # ValueError for integers of more than 4300 digits
        return None


def _shallow(text: str) -> bool:
    steps = ((letter in "[{") - (letter in "]}") for letter in text)
    return max(accumulate(steps), default=0) <= DEEPEST


def to_hydra(kind: Any, key: str, text: str) -> str:
    """The override in Hydra's grammar that sets a key to what was typed.

    Text fields take it as it stands; for others Hydra's grammar is tried first. Escapes are
    resolved where the key's annotation says so.

    Raises:
        SeveralValues: The text is a sweep, as `1,2` or `range(1,3)`.
    """
    bare, _ = split_annotated(kind)
    # a field that takes numbers too leaves the choice to the grammar
    other = is_union(bare) and (text[:1] in "[{" or {int, float} & set(get_args(bare)))
    any_text = bare is str or (is_union(bare) and str in get_args(bare) and not other)
    as_text = (any_text and not _quoted(text)) or (get_origin(bare) is Literal and "," not in text)
    parsed = None if as_text else parse_override(key, text)
    if parsed is None:
        return f"++{key}={quote(resolve_escapes(kind, text))}"
    if parsed.is_sweep_override():
        raise SeveralValues
    if "\\" not in text:
        return f"++{key}={text}"
    value = parsed.value()
    resolved = resolve_escapes(kind, value)
    return f"++{key}={text if resolved == value else in_grammar(resolved)}"


def to_text(value: Any) -> str:
    """Format a value as text that `to_hydra` parses back to the same value."""
    if not isinstance(value, str):
        return in_grammar(value)
    ambiguous = _quoted(value) or value[:1] in ("[", "{")
    return quote(value) if ambiguous and "'" not in value else value


def in_grammar(value: Any) -> str:
    """A value in Hydra's grammar, which keeps a backslash in quotes as it is."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {in_grammar(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(in_grammar, value)) + "]"
    bare = not isinstance(value, str) or re.fullmatch(_BARE_WORD, value)
    return format_value(value) if bare else quote(value)


_BARE_WORD = re.compile(r"(?!(?:true|false|null|nan|inf)$)[a-z_][\w./-]*", re.IGNORECASE | re.ASCII)


def _quoted(text: str) -> bool:
    return bool(re.fullmatch(r"'[^']*'|\"[^\"]*\"", text, re.DOTALL))


def quote(text: str) -> str:
    """The text in the quotes of Hydra's grammar."""
    return str(QuotedString(text=text, quote=Quote.single).with_quotes())


def comma_for_point(kind: Any, text: str) -> str:
    """The number that was meant by `0,0001`, or nothing."""
    bare = split_annotated(kind)[0]
    parts = [split_annotated(part) for part in (get_args(bare) if is_union(bare) else [kind])]
    constraints = next((constraints for part, constraints in parts if part is float), None)
    if constraints is None or not re.fullmatch(r"-?0,\d+", text):
        return ""
    point = text.replace(",", ".")
    try:
        check_scalar(float, constraints, float(point))
    except InvalidValue:
        return ""
    return point


def refused_sweep(kind: Any, key: str, text: str) -> str:
    """The line for several values where one is needed."""
    point = comma_for_point(kind, text)
    if point:
        return f"{key}: got {text}; need a number with a decimal point. Try {key}={point}"
    as_list = (
        f", or write a list as {key}=[{text}]"
        if get_origin(split_annotated(kind)[0]) is list
        else ""
    )
    return f"{key}: got {text}; need one value. For a run of each value add -m{as_list}"


_MEANT = {"\\n": "\n", "\\t": "\t", "\\r": "\r", "\\\\": "\\"}


def resolve_escapes(kind: Any, value: Any) -> Any:
    r"""Resolve `\n`, `\t`, `\r` and `\\` in each text whose annotation has `Escapes`.

    Args:
        kind: annotation of the key, or its config class.
        value: as it was typed; what does not fit the annotation stays as it is.
    """
    bare, constraints = split_annotated(kind)
    if isinstance(value, str):
        marked = any(isinstance(mark, Escapes) for mark in constraints)
        return re.sub(r"\\[ntr\\]", lambda found: _MEANT[found[0]], value) if marked else value
    if is_union(bare):
        try:
            return resolve_escapes(member(bare, value), value)
        except InvalidValue:
            return value
    if isinstance(value, list) and get_origin(bare) is list:
        return [resolve_escapes(get_args(bare)[0], item) for item in value]
    if isinstance(value, dict):
        kinds = field_types(bare) if is_group(bare) else {}
        other = get_args(bare)[1] if get_origin(bare) is dict else Any
        return {name: resolve_escapes(kinds.get(name, other), v) for name, v in value.items()}
    return value
