"""Keys of the rater: single key presses in a terminal, else one a line of standard input."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable

from prompt_toolkit import PromptSession
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys

from rlhf_cli.errors import DataError

QUIT = "q"

ReadKey = Callable[[str, Collection[str]], str]
"""Shows a text and returns one of some keys; the end of the input is `q`."""


def choose_reader() -> ReadKey:
    """Choose how keys are read here."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return press_key
    return LineKeys(sys.stdin)


def press_key(text: str, keys: Collection[str]) -> str:
    """Wait for one of some keys; others are ignored.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM.
    """
    bindings = KeyBindings()

    @bindings.add(Keys.Any)
    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        if event.data.lower() in keys:
            event.current_buffer.insert_text(event.data.lower())  # so that the line shows it
            event.app.exit(result=event.data.lower())

    session: PromptSession[str] = PromptSession(key_bindings=bindings)
    try:
        return session.prompt(text)
    except EOFError:
        return QUIT


class LineKeys:
    """Reads one key a line, for scripts.

    Args:
        lines: standard input.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = iter(lines)

    def __call__(self, text: str, keys: Collection[str]) -> str:
        """Return the key of the next line.

        Raises:
            DataError: it is not one of the keys.
        """
        key = next(self.lines, QUIT).strip().lower()
        print(f"{text}{key}", flush=True)
        if key not in keys:
            raise DataError(
                f"standard input: got {key or 'an empty line'}; need one of {' '.join(keys)}"
            )
        return key
