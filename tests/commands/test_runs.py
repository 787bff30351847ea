"""`rlhf runs`: which folders are runs, and what the list says of them."""

import json

import pytest

from rlhf_cli import cli


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_run(path, status="complete", **manifest):
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(json.dumps({"status": status, **manifest}))
    (path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')


def listed(capsys, *words):
    assert cli.main(["runs", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_runs_of_a_sweep_and_broken_lines_are_listed(folder, capsys):
    write_run(folder / "runs" / "one", command="sft", steps=7)
    write_run(folder / "runs" / "sweep" / "0", status="failed", command="dpo")
    (folder / "runs" / "empty").mkdir()
    found = {one["output_dir"]: one for one in listed(capsys)}
    assert {*found} == {"runs/one", "runs/sweep/0"}
    assert found["runs/one"]["steps"] == 7
    assert found["runs/one"]["changes"][0]["after"] == 2.0
    assert found["runs/sweep/0"]["status"] == "failed"
    assert found["runs/sweep/0"]["steps"] == 1


def test_a_killed_run_is_no_running_one(folder, capsys):
    write_run(folder / "mine", status="running", command="sft")
    assert [one["status"] for one in listed(capsys, "mine")] == ["interrupted"]


def test_the_table_names_stage_and_metric(folder, capsys):
    write_run(folder / "runs" / "one", command="sft")
    assert cli.main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["folder", "stage", "status", "steps"]
    assert "loss 2 → 2" in lines[1]


def test_no_runs_and_no_such_folder(capsys):
    assert cli.main(["runs"]) == 0
    assert capsys.readouterr().out == "no runs\n"
    assert cli.main(["runs", "nowhere"]) == 3
    assert "nowhere: no such folder" in capsys.readouterr().err
    assert cli.main(["runs", "--all"]) == 2


def test_a_damaged_run_does_not_hide_the_others(folder, capsys):
    write_run(folder / "runs" / "one", command="sft")
    (folder / "runs" / "broken").mkdir()
    (folder / "runs" / "broken" / "trainer_state.json").write_text('{"x":')
    found = {one["output_dir"]: one["status"] for one in listed(capsys)}
    assert found == {"runs/one": "complete", "runs/broken": "unknown"}
