"""The line of progress, on a terminal and elsewhere."""

import itertools
import json
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf_cli import cli
from rlhf_cli.console import muted
from rlhf_cli.progress import ProgressCount, StatusLine, track
from tests.helpers import Terminal


def on_terminal(monkeypatch) -> Terminal:
    """Both streams become one terminal, and every look at the clock is two seconds later."""
    shown = Terminal()
    monkeypatch.setattr("sys.stdout", shown)
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setattr("time.monotonic", itertools.count(0.0, 2.0).__next__)
    return shown


def test_a_line_is_written_over_on_a_terminal_and_ended_once(monkeypatch):
    terminal = on_terminal(monkeypatch)
    line = StatusLine()
    line.end()
    line.show("a")
    line.show("b")
    line.end()
    line.end()
    assert terminal.getvalue() == "\r\x1b[Ka\r\x1b[Kb\n"


def test_no_bar_is_shown_while_messages_are_muted(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the stream for a terminal
    rows = [SimpleNamespace(size=1)] * 3
    terminal = on_terminal(monkeypatch)
    assert list(track(rows, 3)) == rows
    assert "tokenizing" in terminal.getvalue()
    terminal = on_terminal(monkeypatch)
    with muted():
        assert list(track(rows, 3)) == rows
    assert terminal.getvalue() == ""


def test_elsewhere_every_line_stands(capsys):
    line = StatusLine()
    line.show("a")
    line.show("b")
    line.end()
    assert capsys.readouterr().err == "a\nb\n"


def test_an_error_is_printed_below_the_line(monkeypatch):
    terminal = on_terminal(monkeypatch)
    with suppress(ValueError), ProgressCount("rows", 2) as progress:
        progress.add(1)
        raise ValueError
    assert terminal.getvalue() == "\r\x1b[K1/2 rows  left 0:02\n"


@pytest.mark.parametrize("output", ["", "out.jsonl"])
def test_rows_of_generate_begin_below_the_line(output, tmp_path, monkeypatch):
    terminal = on_terminal(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text('{"prompt": "Tea?"}\n{"prompt": "Salt?"}\n')
    words = ["generate", "tiny", "prompts=prompts.jsonl", "max_new_tokens=2", "batch_size=1"]
    assert cli.main([*words, *([f"output={output}"] if output else [])]) == 0
    assert "/2 responses" in terminal.getvalue()
    if output:
        assert "2/2 responses  left 0:00\n2 responses" in terminal.getvalue()
    else:
        rows = [line for line in terminal.lines() if '"prompt"' in line]
        assert [json.loads(row)["prompt"] for row in rows] == ["Tea?", "Salt?"]


def test_what_evaluate_says_of_the_answers_stands_below_the_line(tmp_path, monkeypatch):
    terminal = on_terminal(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text('{"prompt": "Tea?"}\n')
    Path("judge.py").write_text("def score(prompts, responses):\n    return [1.0]\n")
    words = ["evaluate", "tiny", "prompts=prompts.jsonl", "judge=judge.py:score"]
    assert cli.main([*words, "max_new_tokens=2"]) == 0
    assert "1/1 answers  left 0:00\ntiny: 1 answers" in terminal.getvalue()


def test_a_line_longer_than_the_terminal_is_cut(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    terminal = on_terminal(monkeypatch)
    StatusLine().show("x" * 60)
    assert terminal.getvalue() == "\r\x1b[K" + "x" * 39
