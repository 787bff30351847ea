"""Old names of config keys and values, which are read as the new ones."""

from dataclasses import dataclass
from typing import Any

RENAMED_KEYS: dict[str, tuple[str, str]] = {
    "sync_share": ("sync_alpha", "0.2"),
    "train.early_stop": ("train.early_stop_patience", "0.2"),
}
"""Old key -> (new key, version that renamed it). A group's entry also covers the keys below it."""

RENAMED_VALUES: dict[tuple[str, str], tuple[str, str]] = {
    ("value", "trunk"): ("shared", "0.2"),
}
"""(New key, old value) -> (new value, version that renamed it)."""


@dataclass(frozen=True)
class Renamed:
    """An override by its new name, with a note for the user.

    Attributes:
        key: new key.
        value: new value.
        note: line that names old and new; empty if nothing was renamed.
    """

    key: str
    value: Any
    note: str = ""


def current_name(key: str) -> tuple[str, str] | None:
    """Return the new name of an old key and the version that renamed it; None for other keys."""
    above, below = key, ""
    while above and above not in RENAMED_KEYS:
        above, _, last = above.rpartition(".")
        below = f".{last}{below}"
    if not above:
        return None
    new, version = RENAMED_KEYS[above]
    return new + below, version


def rename(key: str, value: Any) -> Renamed:
    """Replace an old key and an old value by the new ones."""
    known = current_name(key)
    new, version = known or (key, "")
    notes = [f"{key} is called {new} since {version}"] if known else []
    found = RENAMED_VALUES.get((new, value)) if isinstance(value, str) else None
    if found:
        notes.append(f"{new}={value} is called {new}={found[0]} since {found[1]}")
        value = found[0]
    return Renamed(new, value, "; ".join(notes))


def rename_text(key: str, text: str) -> Renamed:
    """Replace an old key and old values in a text, which may list several values for a sweep."""
    parts = [rename(key, part) for part in text.split(",")]
    old = next((part for part in parts if part.note), parts[0])
    return Renamed(old.key, ",".join(part.value for part in parts), old.note)
