"""Keys and values that older versions knew by another name; they are read as today's."""

from dataclasses import dataclass
from typing import Any

RENAMED_KEYS: dict[str, tuple[str, str]] = {}
"""Old key -> (the key of today, the version that renamed it). A key covers those below it."""

RENAMED_VALUES: dict[tuple[str, str], tuple[str, str]] = {
    ("value", "trunk"): ("shared", "0.2"),
}
"""(Key of today, old value) -> (the value of today, the version that renamed it)."""


@dataclass(frozen=True)
class Renamed:
    """A setting by its name of today, and the line that says so.

    Attributes:
        key: of today.
        value: of today.
        note: for the user; empty where nothing was renamed.
    """

    key: str
    value: Any
    note: str = ""


def current_name(key: str) -> tuple[str, str] | None:
    """The name of today for an old key, and since when; None for a key that is not an old one."""
    above, below = key, ""
    while above and above not in RENAMED_KEYS:
        above, _, last = above.rpartition(".")
        below = f".{last}{below}"
    if not above:
        return None
    new, version = RENAMED_KEYS[above]
    return new + below, version


def rename(key: str, value: Any) -> Renamed:
    """A key and its value by their names of today."""
    known = current_name(key)
    new, version = known or (key, "")
    notes = [f"{key} is called {new} since {version}"] if known else []
    found = RENAMED_VALUES.get((new, value)) if isinstance(value, str) else None
    if found:
        notes.append(f"{new}={value} is called {new}={found[0]} since {found[1]}")
        value = found[0]
    return Renamed(new, value, "; ".join(notes))


def rename_text(key: str, text: str) -> Renamed:
    """A key and what was typed for it, which may be several values, by their names of today."""
    parts = [rename(key, part) for part in text.split(",")]
    old = next((part for part in parts if part.note), parts[0])
    return Renamed(old.key, ",".join(part.value for part in parts), old.note)
