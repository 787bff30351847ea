"""Keys that older versions knew by another name."""

RENAMED: dict[str, tuple[str, str]] = {}
"""Old key: (the key of today, the version that renamed it). A key covers those below it."""


def renamed(key: str) -> tuple[str, str] | None:
    """The name of today for an old key, and since when; None for a key that is not an old one."""
    above, below = key, ""
    while above and above not in RENAMED:
        above, _, last = above.rpartition(".")
        below = f".{last}{below}"
    if not above:
        return None
    new, version = RENAMED[above]
    return new + below, version
