"""The tables of docs/migration.md: keys of other trainers and what replaces them here.

    python -m tests.migration TRL    # prints the table of one library, to paste into the page

The tables come from `rlhf_cli/config/other_trainers.py`, with which the command line answers these
keys.
"""

import sys

from rlhf_cli.config.other_trainers import LIBRARIES, OtherName

PLACEHOLDERS = {"{global}": "N", "{steps}": "N", "{list}": "[A,B]", "{}": "VALUE"}


def table(library: str) -> str:
    """The table of a library's keys, as Markdown."""
    rows = [
        f"| `{name}` | {settings(entry)} | {entry.note} |".replace("|  |", "| |")
        for name, entry in LIBRARIES[library].items()
    ]
    return "\n".join([f"| {library} | here | difference |", "|---|---|---|", *rows])


def settings(entry: OtherName) -> str:
    """What replaces a key: settings, or for each of its values the settings."""
    if isinstance(entry.settings, str):
        return f"`{_fill(entry.settings)}`" if entry.settings else ""
    parts = [f"{value}: `{_fill(text)}`" for value, text in entry.settings.items()]
    return "; ".join(parts)


def _fill(text: str) -> str:
    for placeholder, shown in PLACEHOLDERS.items():
        text = text.replace(placeholder, shown)
    return text


if __name__ == "__main__":
    print(table(sys.argv[1]))
