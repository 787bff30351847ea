import json

import pytest

from rlhf_cli import cli
from tests.stages.conftest import sft_run

__all__ = ["sft_run"]


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """Runs `rlhf report` in an empty folder; gives its exit code, output and error lines."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = cli.main(["report", *map(str, words)])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return code, shown.out.strip(), shown.err.strip()

    return run


def test_a_run_has_its_report_from_the_start(sft_run):
    page = (sft_run / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert 'class="pill complete"' in page
    origins = json.loads((sft_run / "manifest.json").read_text())["origins"]
    assert origins["train.max_steps"] == "command line"
    assert "train.schedule" not in origins


def test_the_report_of_a_run_is_written_into_its_folder(sft_run, told):
    (sft_run / "report.html").unlink()
    code, out, _ = told(sft_run)
    assert (code, out) == (0, str(sft_run / "report.html"))
    assert (sft_run / "report.html").is_file()


def test_several_runs_into_the_working_folder_or_a_file(sft_run, told, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    assert told(sft_run, "other")[:2] == (0, "report.html")
    assert told(sft_run, "other", "output=two.html")[:2] == (0, "two.html")
    assert "2 runs" in (tmp_path / "two.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "got nothing; need folders of runs"),
        (["none"], 3, "none: no such folder"),
        ([".", "output=a.html", "output=b.html"], 2, "at most one output=FILE.html"),
        ([".", "output=report.pdf"], 2, "Try output=report.html"),
        ([".", "output="], 2, "need an .html file"),
        ([".", "output=none/a.html"], 2, "none is no folder. Try output=a.html"),
        ([".", "--opne"], 2, "the only switch is --open"),
        (["."], 3, ".: holds no run"),
    ],
)
def test_wrong_words(words, code, message, told):
    found, _, err = told(*words)
    assert found == code
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_file_in_place_of_a_folder(told, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    code, _, err = told("metrics.jsonl")
    assert code == 3
    assert "is no folder" in err


def test_a_report_that_cannot_be_made_fails_no_run(tmp_path, monkeypatch, capsys):
    from rlhf_cli.report import write

    def broken(*args):
        raise ValueError("a bug of the page")

    monkeypatch.setattr(write, "write_report", broken)
    words = ["model=tiny", "data=tiny", "max_steps=1", "data.eval=4", "log.sample_prompts=0"]
    assert cli.main(["sft", *words, f"output_dir={tmp_path / 'run'}"]) == 0
    assert "report.html: not written (a bug of the page)" in capsys.readouterr().err
    assert "report.html: not written" in (tmp_path / "run" / "log.txt").read_text()


def test_a_run_that_fails_on_its_input_leaves_no_report(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    assert cli.main(["sft", "model=tiny", f"data={rows}", f"output_dir={tmp_path / 'run'}"]) == 3
    assert not (tmp_path / "run").exists()
