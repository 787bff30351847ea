"""What the user types in a terminal: messages of several lines, with a history and completion."""

from __future__ import annotations

import os
import sys
import termios
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from rlhf_cli.console import logger
from rlhf_cli.errors import first_line
from rlhf_cli.resources import cache_folder

PROMPT, CONTINUED = "> ", ". "


class LineCleared(Exception):
    """Ctrl-C at the prompt: what was typed is dropped."""


class Keyboard:
    """Reads messages from the terminal.

    Args:
        history: file of past inputs; `auto` is in the cache folder, `none` keeps none.
        words: completed by Tab.
    """

    def __init__(self, history: str, words: Iterable[str]) -> None:
        self.session: PromptSession[str] = PromptSession(
            history=open_history(history),
            completer=WordCompleter(list(words), sentence=True),
            complete_while_typing=False,
            key_bindings=_bindings(),
            multiline=True,
            prompt_continuation=CONTINUED,
            interrupt_exception=LineCleared,  # SIGTERM still raises KeyboardInterrupt
        )

    def read(self) -> str:
        """Read one message.

        Raises:
            EOFError: Ctrl-D on an empty line.
            LineCleared: Ctrl-C.
            KeyboardInterrupt: SIGTERM.
        """
        return self.session.prompt(PROMPT)


def _bindings() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    @keys.add("c-j")  # what was typed before the terminal was set up ends so, and scripts send it
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("escape", "c-j")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def open_history(given: str) -> History:
    """Open the file of past inputs, which only its owner can read.

    Args:
        given: a file; `auto` is in the cache folder, `none` keeps none.
    """
    if given == "none":
        return InMemoryHistory()
    path = cache_folder() / "chat_history" if given == "auto" else Path(given).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o600))
        if not path.is_file():
            raise OSError("no regular file")
    except OSError as error:
        logger.info(f"history: {path} cannot be written ({first_line(error)}); none is kept")
        return InMemoryHistory()
    return FileHistory(path)


@contextmanager
def keys_kept() -> Iterator[None]:
    """Keep keys that are pressed while an answer is written for the next prompt, without an echo.

    Ctrl-C still sends its signal. The terminal's settings are restored.
    """
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    changed = termios.tcgetattr(terminal)
    changed[0] &= ~termios.ICRNL  # Enter stays a carriage return, as prompts expect it
    changed[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(terminal, termios.TCSADRAIN, changed)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
