"""What a chat does in a terminal: keys, streaming, Ctrl-C, columns, and a real pseudo-terminal."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO

import pytest
import torch
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.cells import cell_len
from rich.console import Console

from rlhf_cli.commands.chat.config import ChatConfig
from rlhf_cli.commands.chat.keyboard import Keyboard, LineCleared
from rlhf_cli.commands.chat.model import load_chat_models, never_stopped, stopping_on_interrupt
from rlhf_cli.commands.chat.views import ColumnsView, PlainView, StackedView, choose_view
from rlhf_cli.context import create_context
from rlhf_cli.data.records.fields import Message
from rlhf_cli.rollout.config import SamplingConfig


@contextmanager
def typing(text: str, history: str = "none") -> Iterator[Keyboard]:
    with (
        create_pipe_input() as keys,
        create_app_session(input=keys, output=DummyOutput()),
    ):
        assert isinstance(keys, PipeInput)
        keys.send_text(text)
        yield Keyboard(history, ["/help", "/set temperature="])


def test_enter_sends_and_other_keys_start_a_new_line():
    with typing("one\ra\x1b\rb\rc\ne\\\rf\r\x1b[200~g\nh\x1b[201~\r") as keyboard:
        read = [keyboard.read() for _ in range(5)]
    assert read == ["one", "a\nb", "c", "e\nf", "g\nh"]


def test_ctrl_c_clears_the_line_and_ctrl_d_ends():
    with typing("half\x03\x04") as keyboard:
        with pytest.raises(LineCleared):
            keyboard.read()
        with pytest.raises(EOFError):
            keyboard.read()


def test_inputs_are_kept_for_their_owner_alone(tmp_path, capsys):
    file = tmp_path / "inputs"
    with typing("first\r", str(file)) as keyboard:
        keyboard.read()
    assert file.stat().st_mode & 0o777 == 0o600
    with typing("\x1b[A\r", str(file)) as keyboard:
        assert keyboard.read() == "first"
    with typing("x\r", str(tmp_path)) as keyboard:
        assert keyboard.read() == "x"
    assert "history: " in capsys.readouterr().err


def terminal(width: int) -> Console:
    return Console(
        file=StringIO(), force_terminal=True, width=width, height=12, highlight=False,
        color_system=None,
    )  # fmt: skip


def shown(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", console.file.getvalue())


def test_the_view_follows_the_width_of_the_terminal():
    assert isinstance(choose_view(terminal(160), 2), ColumnsView)
    assert isinstance(choose_view(terminal(80), 2), ColumnsView)
    assert isinstance(choose_view(terminal(80), 3), StackedView)
    assert isinstance(choose_view(terminal(40), 2), StackedView)
    assert isinstance(choose_view(terminal(160), 1), StackedView)
    assert isinstance(choose_view(Console(file=StringIO()), 2), PlainView)


def test_a_narrow_terminal_wraps_between_words():
    console = terminal(20)
    view = StackedView(console)
    pieces = [
        "The quick ",
        "brown fox ",
        "jumps over\n",
        "  the ",
        "漢字",
        "漢字漢字漢字 ",
        "x" * 25,
    ]
    with view, view.answer("1 a") as sink:
        for piece in pieces:
            sink(piece)
    lines = shown(console).splitlines()
    assert lines[:4] == ["1 a", "The quick brown fox ", "jumps over", "  the 漢字"]
    assert all(cell_len(line) <= 20 for line in lines if "x" not in line)


def test_columns_stand_beside_each_other_and_stay_whole():
    console = terminal(80)
    long = " ".join(f"word{number}" for number in range(60))
    with ColumnsView(console) as view:
        for heading, text in (("1 a", long), ("2 b", "short")):
            with view.answer(heading) as sink:
                sink(text)
            view.note("stopped" if heading == "2 b" else "")
    final = shown(console).rpartition("1 a")[2]
    assert "2 b" in final.splitlines()[0]
    assert re.findall(r"word\d+", final) == long.split()
    assert "(stopped)" in final
    assert all(cell_len(line.rstrip()) <= 80 for line in final.splitlines())


@pytest.fixture(scope="module")
def model(run_of, tmp_path_factory):
    cfg = ChatConfig()
    cfg.model.path = str(run_of("sft"))
    ctx = create_context("fp32", 0, tmp_path_factory.mktemp("ctx"))
    return load_chat_models(cfg, ctx)[0]


ASKED = (Message("user", "Hi"),)


def test_an_answer_is_streamed_and_the_same_again(model):
    sampling = SamplingConfig(max_new_tokens=8)
    pieces: list[str] = []
    with never_stopped() as is_stopped:
        one = model.answer(ASKED, sampling, 0, pieces.append, is_stopped)
        again = model.answer(ASKED, sampling, 0, pieces.append, is_stopped)
        other = model.answer(ASKED, sampling, 1, pieces.append, is_stopped)
    assert "".join(pieces) == one.text + again.text + other.text
    assert one.text == again.text != other.text
    assert one.sampling["sample"] == 0
    assert len(one.model["sha256"]) == 16


def test_ctrl_c_stops_an_answer_and_keeps_its_text(model):
    sampling = SamplingConfig(max_new_tokens=50, min_new_tokens=50)
    attention = model.generator.model.config._attn_implementation
    pieces: list[str] = []

    def interrupt(text: str) -> None:
        pieces.append(text)
        if len(pieces) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with stopping_on_interrupt() as is_stopped:
        answer = model.answer(ASKED, sampling, 0, interrupt, is_stopped)
    assert answer.stopped
    assert not answer.finished
    assert answer.text == "".join(pieces)
    assert model.generator.model.config._attn_implementation == attention
    assert torch.is_grad_enabled()


@pytest.fixture
def _default_interrupt():
    """Ctrl-C as in a program of its own; a worker of the test suite may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_default_interrupt")
def test_a_second_ctrl_c_interrupts():
    with stopping_on_interrupt() as is_stopped:
        os.kill(os.getpid(), signal.SIGINT)
        assert is_stopped()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


class Terminal:
    """A program in a pseudo-terminal of 80 columns."""

    def __init__(self, *words: str, folder: str) -> None:
        self.master, slave = pty.openpty()
        os.set_blocking(self.master, False)
        env = {**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rlhf_cli", *words],
            stdin=slave, stdout=slave, stderr=slave, cwd=folder, env=env, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, text: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self.master], [], [], 1)[0]:
                try:
                    self.seen += os.read(self.master, 65536).decode(errors="replace")
                except OSError:  # the program has closed its end
                    assert text in self.seen, self.seen
            if "\x1b[6n" in self.seen:  # it asks where the cursor is
                self.seen = self.seen.replace("\x1b[6n", "")
                self.type("\x1b[24;1R")

    def end(self, seconds: float = 30) -> int:
        code = self.process.wait(seconds)
        os.close(self.master)
        return code


def test_a_chat_in_a_pseudo_terminal_that_sigterm_ends(run_of, tmp_path):
    words = ["max_new_tokens=4", "sampling.min_new_tokens=4", "temperature=0", "precision=fp32"]
    chat = Terminal("chat", str(run_of("sft")), *words, folder=str(tmp_path))
    chat.type("Hi\r/bad\r")  # typed while the model is loaded and the answer written
    chat.wait_for("added a row to feedback.labels.jsonl")
    assert (tmp_path / "feedback.labels.jsonl").read_text().count("\n") == 1
    chat.process.send_signal(signal.SIGTERM)
    chat.wait_for("interrupted")
    assert chat.end() == 130
