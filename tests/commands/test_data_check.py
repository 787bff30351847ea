"""`rlhf data check`: exit codes, text and JSON output, options."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_cli import cli
from rlhf_cli.data.checks.finding import Finding
from tests.data.toy import turns, write_jsonl

CLEAN = [
    {"messages": turns("What is tea?", "A drink of leaves.")},
    {"messages": turns("What is bread?", "Baked dough.")},
]
WARNED = [*CLEAN, {"messages": turns("What is this?", "A caf\ufffd.")}]
BROKEN = [*CLEAN, "{broken"]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def check(rows, *words):
    write_jsonl(Path("rows.jsonl"), *rows)
    return cli.main(["data", "check", "rows.jsonl", "model=tiny", *words])


@pytest.mark.parametrize(
    ("rows", "words", "code"),
    [
        (CLEAN, (), 0),
        (CLEAN, ("--strict",), 0),
        (WARNED, (), 0),
        (WARNED, ("--strict",), 1),
        (WARNED, ("--strict", "ignore=replacement-characters"), 0),
        (BROKEN, (), 3),
        (BROKEN, ("--strict",), 3),
        (BROKEN, ("data.max_bad_rows=1",), 0),
        (BROKEN, ("ignore=malformed-rows",), 0),
    ],
)
def test_exit_codes_are_for_scripts(rows, words, code):
    assert check(rows, "stage=sft", *words) == code


def test_the_summary_stands_first_and_the_gravest_finding_second(capsys):
    check([*WARNED, "{broken"], "stage=sft")
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == "rows.jsonl as sft: 4 rows: 1 error, 1 warning"
    assert lines[1].split() == ["error", "malformed-rows", "1", "of", "4", "rows", "(25.0", "%)"]
    assert any(line.strip().startswith("rows.jsonl:3  messages[1]: A caf") for line in lines)
    assert "error: 1 error: malformed-rows" in printed.err


def test_json_has_a_stable_schema(capsys):
    check(WARNED, "stage=sft", "format=json")
    found = json.loads(capsys.readouterr().out)
    findings = found.pop("findings")
    assert found == {
        "version": 1,
        "stage": "sft",
        "files": ["rows.jsonl"],
        "kind": "chat",
        "rows": 3,
        "examined_rows": 3,
        "kept_rows": 3,
        "errors": 0,
        "warnings": 1,
        "notes": 0,
    }
    first = findings[0]
    assert set(first) == {*Finding.__dataclass_fields__, "share"}
    assert first["code"] == "replacement-characters"
    assert (first["count"], first["total"]) == (1, 3)
    assert first["share"] == pytest.approx(1 / 3)
    assert first["examples"][0]["location"] == "rows.jsonl:3"


def test_a_sample_is_named_in_the_summary(capsys):
    rows = [{"prompt": f"p{i}", "completion": f" c{i}"} for i in range(30)]
    assert check(rows, "stage=sft", "rows=10") == 0
    assert "30 rows, 10 of them examined" in capsys.readouterr().out
    assert check(rows, "stage=sft", "rows=10", "format=json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["examined_rows"]) == (30, 10)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("ignore=near-duplicate",),
            "ignore: got near-duplicate, which no check finds. Try ignore",
        ),
        (("format=html",), "format: got html; need text or json"),
        (("rows=0",), "rows: got 0; need a whole number"),
        (("rows=many",), "rows: got many; need a whole number"),
    ],
)
def test_wrong_options_are_refused(capsys, words, message):
    assert check(CLEAN, "stage=sft", *words) == 2
    assert message in capsys.readouterr().err


def test_a_stage_that_does_not_take_the_rows_is_refused(capsys):
    assert check(CLEAN, "stage=dpo") == 3
    assert "dpo takes preference rows" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_refused(capsys):
    assert cli.main(["data", "check", "none.jsonl", "stage=sft", "model=tiny"]) in (2, 3)
    assert "none.jsonl" in capsys.readouterr().err


def test_control_characters_of_rows_do_not_reach_the_terminal(capsys):
    rows = [{"messages": turns("Red?", "\x1b[31mYes\x1b[0m \x07")}]
    check(rows, "stage=sft")
    printed = capsys.readouterr().out
    assert "ansi-escapes" in printed
    assert "\x1b" not in printed
    assert "\x07" not in printed


def test_torch_is_not_imported():
    write_jsonl(Path("rows.jsonl"), *WARNED)
    code = (
        "import sys; from rlhf_cli import cli; "
        "cli.main(['data', 'check', 'rows.jsonl', 'stage=sft', 'model=tiny']); "
        "assert not sys.modules.get('torch')"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, "Traceback" in ran.stderr) == (0, False)


def test_progress_goes_to_stderr(capsys, monkeypatch):
    from rlhf_cli.progress import ProgressCount

    monkeypatch.setattr(ProgressCount, "QUIET_SECONDS", -1.0)
    check(CLEAN, "stage=sft", "format=json")
    printed = capsys.readouterr()
    assert "rows tokenized" in printed.err
    json.loads(printed.out)


def test_the_switch_for_json_is_that_of_all_commands(capsys):
    check(WARNED, "stage=sft", "--json")
    assert json.loads(capsys.readouterr().out)["rows"] == 3
    assert cli.main(["data", "elo", "rows.jsonl", "--json"]) == 2
    assert "--json" in capsys.readouterr().err
