"""Secrets from the environment, given as `${oc.env:NAME}`: the reference is written, not the value.

A key or password stands in a header or in the address of a server. A run needs its value; the run
folder, trackers and messages get the reference. All other keys are written with their values,
whatever they came from: they decide the result, and a run is only the same with the same values.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

_ENVIRONMENT = re.compile(r"(?<!\\)\$\{oc\.env:\s*([A-Za-z_]\w*)")
_WHOLE = re.compile(r"(?<!\\)\$\{oc\.env:\s*[A-Za-z_]\w*\s*\}")
_SECRET_NAME = re.compile(
    r"(?:^|[_-])(?:(?:api|access)?key|token|secret|password|passwd|auth|authorization|"
    r"signature|sig|credential|cookie)s?$",
    re.IGNORECASE,
)
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
"""Start of a word in camel case: before `Token` in `accessToken` and in `HTTPToken`."""

_SCHEME = re.compile(r"(?:bearer|basic|token)?\s*", re.IGNORECASE)


TOKENS = ("rollout.token", "teacher_token")
"""Keys whose whole value is a secret."""


class Reference(str):
    """A text that refers to the environment; in YAML its `${` is not escaped."""


References = Mapping[str, str]
"""Key, with indices of lists, -> its text with `${oc.env:NAME}` in it."""


def find_references(raw: Any, resolved: Any) -> dict[str, str]:
    """Find the headers and addresses of a configuration that hold a value from the environment.

    Args:
        raw: the configuration before its references are resolved.
        resolved: the same afterwards.
    """
    texts = dict(iterate_texts(raw))
    values = [value for value in environment_values(texts) if value]
    found = {}
    for key, value in iterate_texts(resolved):
        text = texts.get(key, "")
        indirect = "${" in text and any(secret in value for secret in values)
        if _may_hold_secret(key) and (_ENVIRONMENT.search(text) or indirect):
            found[key] = text
    return found


def _may_hold_secret(key: str) -> bool:
    return key in TOKENS or _is_header(key) or key.rpartition(".")[2] == "url"


def _is_header(key: str) -> bool:
    return ".headers." in f".{key}"


def environment_values(references: References) -> list[str]:
    """The values of the variables that some texts refer to, the longest first."""
    names = {name for text in references.values() for name in _ENVIRONMENT.findall(text)}
    return sorted({os.environ.get(name, "") for name in names}, key=len, reverse=True)


def with_references(tree: Any, references: References, prefix: str = "") -> Any:
    """Nested values with the references in place of what they stand for."""
    if isinstance(tree, dict):
        return {
            name: with_references(value, references, f"{prefix}.{name}" if prefix else str(name))
            for name, value in tree.items()
        }
    if isinstance(tree, list):
        return [with_references(v, references, f"{prefix}[{i}]") for i, v in enumerate(tree)]
    return Reference(references[prefix]) if prefix in references else tree


def with_unset_as_text(tree: Any) -> Any:
    """Escape the references to environment variables that are not set, so that they stay text.

    What reads the value refuses it: see `unset_names`.
    """
    if isinstance(tree, dict):
        return {name: with_unset_as_text(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [with_unset_as_text(value) for value in tree]
    if not isinstance(tree, str):
        return tree
    return _WHOLE.sub(lambda found: rf"\{found[0]}" if unset_names(found[0]) else found[0], tree)


def unset_names(text: str) -> list[str]:
    """The variables that a text refers to and that are not set."""
    return [name for name in _ENVIRONMENT.findall(text) if name not in os.environ]


def literal_secrets(raw: Any) -> Iterator[tuple[str, str]]:
    """Find the keys whose text holds a secret itself; each with a line that does not show it.

    Args:
        raw: a configuration before its references are resolved.
    """
    for key, text in iterate_texts(raw):
        literal = _WHOLE.sub("", text)
        if _is_header(key) and _is_secret_name(key.rpartition(".")[2]):
            if not _SCHEME.fullmatch(literal):
                yield key, f"{key}: holds a secret as plain text; {_need(key)}"
        elif key in TOKENS and literal:
            yield key, f"{key}: holds a secret as plain text; {_need(key)}"
        elif key.rpartition(".")[2] == "url":
            found = _secret_in_url(literal)
            if found:
                yield key, f"{key}: holds a secret as plain text ({found}); {_need(key)}"


def _need(key: str) -> str:
    name = key.rpartition(".")[2]
    before = {"url": "...", "Authorization": "Bearer "}.get(name, "")
    return (
        "it would be written to the run's folder; need it from the environment. "
        f"Try {key}='{before}${{oc.env:NAME}}' with the secret in the variable NAME"
    )


def _secret_in_url(url: str) -> str:
    """The parameter of an address that is a secret; empty where none is.

    A user and password before the host are refused in any case, where addresses are checked.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    names = [name for name, value in parse_qsl(parts.query) if value and _is_secret_name(name)]
    return f"?{names[0]}=" if names else ""


def _is_secret_name(name: str) -> bool:
    """Whether the last word of a name is one of a secret, as in `api_key` and `accessToken`."""
    return bool(_SECRET_NAME.search(_WORD_START.sub("_", name)))


def public_url(url: str) -> str:
    """An address without user, password, query and fragment, for messages."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an address"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def iterate_texts(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of nested values, with its key."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from iterate_texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from iterate_texts(value, f"{key}[{i}]")
    elif isinstance(tree, str):
        yield key, tree
