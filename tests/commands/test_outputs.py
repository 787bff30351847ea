"""`output=` takes nothing away: no input, and no older result before the new one is complete."""

import json
import os
from pathlib import Path

import pytest

from rlhf_cli import cli
from rlhf_cli.commands.evaluate import run as evaluate
from rlhf_cli.commands.evaluate.config import EvaluateConfig
from rlhf_cli.commands.generator import TextGenerator
from rlhf_cli.errors import DataError
from rlhf_cli.runs.outputs import check_output, open_output

GENERATE = ["generate", "tiny", "max_new_tokens=2", "batch_size=1", "precision=fp32"]


@pytest.fixture(autouse=True)
def _prompts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text('{"prompt": "Tea?"}\n{"prompt": "Salt?"}\n')


@pytest.mark.parametrize("output", ["prompts.jsonl", "./x/../prompts.jsonl", "link", "hard"])
def test_the_prompts_are_not_replaced(output, capsys):
    before = Path("prompts.jsonl").read_text()
    Path("x").mkdir()
    Path("link").symlink_to("prompts.jsonl")
    os.link("prompts.jsonl", "hard")
    assert cli.main([*GENERATE, "prompts=prompts.jsonl", f"output={output}"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: output: got {output}, which would replace ")
    assert line.endswith("a file that prompts reads; need another file  (command line)")
    assert Path("prompts.jsonl").read_text() == before


def test_rows_that_are_partly_written_can_be_read_but_not_replaced(capsys):
    Path("prompts.jsonl").rename("out.jsonl.partial")
    Path("prompts.jsonl").symlink_to("out.jsonl.partial")
    assert cli.main([*GENERATE, "prompts=prompts.jsonl", "output=out.jsonl"]) == 2
    assert "a file that prompts reads" in capsys.readouterr().err


def test_the_rows_of_a_folder_and_files_of_a_run_are_not_replaced(run_of, capsys):
    run = run_of("sft")
    data = Path("rows")
    data.mkdir()
    (data / "a.jsonl").write_text('{"prompt": "Tea?", "completion": "Yes."}\n')
    words = ["evaluate", str(run), f"data={data}"]
    assert cli.main([*words, f"output={data / 'a.jsonl'}"]) == 2
    assert "a file that data.path reads" in capsys.readouterr().err
    assert cli.main([*words, f"output={run / 'manifest.json'}"]) == 2
    assert "which belongs to the run in" in capsys.readouterr().err
    assert cli.main([*words, f"output={run / 'model' / 'config.json'}"]) == 2
    assert "a file that model.path reads" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        ".lock",
        "samples.jsonl",
        "model/config.json",
        "model/new/a.json",
        "checkpoints/step-000001/state.json",
        "trackers",
        "ranks/rank-1.log",
    ],
)
def test_nothing_is_written_into_what_another_run_holds(name, run_of, tmp_path, capsys):
    run = run_of("sft")
    before = sorted(run.rglob("*")), (run / "model" / "config.json").read_bytes()
    words = ["evaluate", "tiny", "data=tiny"]
    assert cli.main([*words, f"output={run / name}"]) == 2
    assert f"which belongs to the run in {run}" in capsys.readouterr().err
    Path("link").symlink_to(run)
    assert cli.main([*words, f"output=link/{name}"]) == 2
    assert (sorted(run.rglob("*")), (run / "model" / "config.json").read_bytes()) == before


def test_a_file_of_its_own_name_may_lie_in_a_run(run_of):
    config = EvaluateConfig(output=str(run_of("sft") / "measured" / "result.json"))
    assert check_output(config) == []


def test_an_older_result_stands_until_the_new_one_is_measured(monkeypatch):
    Path("out.json").write_text("older")

    def fail(*args):
        assert Path("out.json").read_text() == "older"
        raise DataError("x")

    monkeypatch.setattr(evaluate, "measure", fail)
    assert cli.main(["evaluate", "tiny", "data=tiny", "output=out.json"]) == 3
    assert Path("out.json").read_text() == "older"
    assert sorted(os.listdir()) == ["out.json", "prompts.jsonl"]


def test_answers_that_were_written_before_an_error_are_kept_aside(monkeypatch, capsys):
    Path("out.jsonl").write_text("older")
    answer = TextGenerator.generate

    def one_then_fail(self, tokens, *rest):
        yield next(answer(self, tokens[:1], *rest))
        raise DataError("x")

    monkeypatch.setattr(TextGenerator, "generate", one_then_fail)
    assert cli.main([*GENERATE, "prompts=prompts.jsonl", "output=out.jsonl"]) == 3
    assert Path("out.jsonl").read_text() == "older"
    assert "so far is in " in capsys.readouterr().err
    [row] = map(json.loads, Path("out.jsonl.partial").read_text().splitlines())
    assert row["prompt"] == "Tea?"


def test_a_finished_file_replaces_what_a_link_names_and_keeps_its_permissions():
    Path("results").mkdir()
    real = Path("results/real.jsonl")
    real.write_text("older")
    real.chmod(0o640)
    Path("out.jsonl").symlink_to(real)
    with open_output(Path("out.jsonl")) as write:
        write("a\n")
        write("b\n")
        assert real.read_text() == "older"
    assert Path("out.jsonl").is_symlink()
    assert real.read_text() == "a\nb\n"
    assert real.stat().st_mode & 0o777 == 0o640
    assert os.listdir("results") == ["real.jsonl"]


def test_a_pipe_is_written_to():
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    with open_output(Path("pipe")) as write:
        write("a\n")
        assert os.read(reader, 10) == b"a\n"
    os.close(reader)
    assert Path("pipe").is_fifo()


@pytest.mark.parametrize("link", [True, False])
def test_a_pipe_without_a_name_is_written_to(link):
    """As `/dev/stdout | ...` and `>(...)` in a shell: links under /proc to `pipe:[NUMBER]`."""
    reader, writer = os.pipe()
    output = Path(f"/dev/fd/{writer}")
    if link:
        Path("link").symlink_to(output)
        output = Path("link")
    with open_output(output) as write:
        write("a\n")
        assert os.read(reader, 10) == b"a\n"
    os.close(reader)
    os.close(writer)


def test_the_command_writes_to_a_pipe_without_a_name():
    reader, writer = os.pipe()
    assert cli.main([*GENERATE, "prompts=prompts.jsonl", f"output=/dev/fd/{writer}"]) == 0
    os.close(writer)
    with open(reader, encoding="utf-8") as rows:
        assert [json.loads(row)["prompt"] for row in rows] == ["Tea?", "Salt?"]
