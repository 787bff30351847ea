r"""Escapes in text from the command line: a shell passes `\n` on as a backslash and an n."""

import re
from typing import Any, get_args, get_origin

from rlhf_cli.config.schema import Escapes, Unfit, field_types, is_group, is_union, unmark
from rlhf_cli.config.values import member

_MEANT = {"\\n": "\n", "\\t": "\t", "\\r": "\r", "\\\\": "\\"}


def resolve_escapes(kind: Any, value: Any) -> Any:
    r"""Resolve `\n`, `\t`, `\r` and `\\` in each text whose annotation has `Escapes`.

    Args:
        kind: annotation of the key, or its config class.
        value: as it was typed; what does not fit the annotation stays as it is.
    """
    bare, marks = unmark(kind)
    if isinstance(value, str):
        marked = any(isinstance(mark, Escapes) for mark in marks)
        return re.sub(r"\\[ntr\\]", lambda found: _MEANT[found[0]], value) if marked else value
    if is_union(bare):
        try:
            return resolve_escapes(member(bare, value), value)
        except Unfit:
            return value
    if isinstance(value, list) and get_origin(bare) is list:
        return [resolve_escapes(get_args(bare)[0], item) for item in value]
    if isinstance(value, dict):
        kinds = field_types(bare) if is_group(bare) else {}
        other = get_args(bare)[1] if get_origin(bare) is dict else Any
        return {name: resolve_escapes(kinds.get(name, other), v) for name, v in value.items()}
    return value
