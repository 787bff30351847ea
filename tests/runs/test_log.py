"""`log.txt` holds what a run said."""

import io
import subprocess
import sys
from contextlib import suppress

import pytest

from rlhf_cli.errors import DataError
from rlhf_cli.runs import log
from rlhf_cli.runs.log import logged, redacted
from tests.stages.test_stages import sft, stop_after


def test_the_log_holds_what_a_run_said(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert sft(tmp_path / "run", "max_steps=2", "train.save_steps=1") == 130
    first = (tmp_path / "run" / "log.txt").read_text()
    assert "held-out after step 0: loss" in first
    assert "step 1/2  loss" in first
    assert first.endswith("interrupted\n")
    capsys.readouterr()
    assert sft(tmp_path / "run", "max_steps=2", "train.save_steps=1") == 0
    both = (tmp_path / "run" / "log.txt").read_text()
    assert both.startswith(first)
    assert both.removeprefix(first) == capsys.readouterr().err


def test_warnings_and_log_records_are_logged(tmp_path):
    program = (
        "import logging, sys, warnings; from pathlib import Path\n"
        "from rlhf_cli.runs.log import logged\n"
        "with logged(Path(sys.argv[1])):\n"
        "    logging.basicConfig()\n"
        "    logging.getLogger('library').warning('slow path')\n"
        "    warnings.warn('rounded')\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    log = (tmp_path / "log.txt").read_text()
    assert "WARNING:library:slow path\n" in log
    assert "UserWarning: rounded\n" in log
    assert log == said


@pytest.mark.parametrize("error", [DataError("rows.jsonl:1: no text"), ValueError("unforeseen")])
def test_the_error_that_ends_a_run_is_in_its_log(tmp_path, error):
    with pytest.raises(type(error)), logged(tmp_path):
        raise error
    text = (tmp_path / "log.txt").read_text()
    assert str(error) in text
    assert ("Traceback" in text) == isinstance(error, ValueError)


def test_a_line_that_is_written_over_is_logged_once(tmp_path, monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    with logged(tmp_path):
        print("\r\x1b[Kstep 1", end="", file=sys.stderr)
        print("\r\x1b[Kstep 2", end="", file=sys.stderr)
        print(file=sys.stderr)
        print("half", end="", file=sys.stderr)
        print("result", flush=True)
        print(" a line", file=sys.stderr)
    assert (tmp_path / "log.txt").read_text() == "step 2\nresult\nhalf a line\n"
    assert terminal.getvalue() == "\r\x1b[Kstep 1\r\x1b[Kstep 2\nhalf a line\n"


def test_colours_and_control_codes_of_a_terminal_are_not_logged(tmp_path, monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    with logged(tmp_path):
        print("\x1b[?25l\x1b[1;31mtokenizing\x1b[0m\x1b[2K \x1b[38;5;237m10%", file=sys.stderr)
        print("\x1b", end="", file=sys.stderr)
        print("[32mdone\x1b[0m [1] is kept", file=sys.stderr)
    assert (tmp_path / "log.txt").read_text() == "tokenizing 10%\ndone [1] is kept\n"
    assert terminal.getvalue().startswith("\x1b[?25l\x1b[1;31m")


@pytest.mark.parametrize("error", [None, DataError("rows.jsonl:1: no text")])
def test_a_last_line_without_its_end_is_logged_before_the_error(error, tmp_path, capsys):
    with suppress(DataError), logged(tmp_path):
        print("half a line", end="")
        print("\r\x1b[K", end="", file=sys.stderr)
        if error:
            raise error
    told = "half a line\n" + ("error: rows.jsonl:1: no text\n" if error else "")
    assert (tmp_path / "log.txt").read_text() == told
    assert capsys.readouterr().out == "half a line"


def test_a_stream_that_outlives_the_run_still_writes(tmp_path, capsys):
    with logged(tmp_path):
        kept = sys.stderr
    kept.write("later\n")
    assert capsys.readouterr().err == "later\n"
    assert (tmp_path / "log.txt").read_text() == ""


def test_no_secret_is_said(monkeypatch, capsys):
    monkeypatch.setenv("KEY", "abcdef1234")
    log.set_secret_references({"reward.url": "http://h?key=${oc.env:KEY}"})
    with redacted():
        print("asked http://h?key=abcdef1234")
        sys.stderr.writelines(["x abcdef1234\n"])
    out = capsys.readouterr()
    assert (out.out, out.err) == ("asked http://h?key=***\n", "x ***\n")
    log.set_secret_references({})
