import json

import pytest

from rlhf_cli.errors import DataError
from rlhf_cli.report.compare import expand, run_names
from rlhf_cli.report.settings import differences, split_settings
from rlhf_cli.report.write import write_report
from rlhf_cli.runs.record import read_record
from tests.report.conftest import CONFIG, LINES
from tests.report.test_page import checked


def compared(folders, target):
    write_report(folders, target)
    return checked(target.read_text(encoding="utf-8"))


def test_several_runs_are_drawn_over_each_other(a_run, tmp_path):
    runs = [
        a_run("a"),
        a_run("b", config=CONFIG.replace("0.1", "0.5")),
        a_run("c", lines=[*LINES[:4]], status="failed", error="out of memory"),
    ]
    page = compared(runs, tmp_path / "report.html")
    for words in ("3 runs", "beta", "0.5", "failed", 'class="line c2"'):
        assert words in page


def test_differing_keys_and_those_that_only_some_runs_have(a_run):
    runs = [a_run("a"), a_run("b", config="stage: sft\ntrain:\n  lr: 2.0e-4\nseed: 1\n")]
    found = {d.key: (d.values, d.shared) for d in differences([read_record(r) for r in runs])}
    assert found == {
        "train.lr": (["0.0001", "0.0002"], True),
        "model.path": (["tiny", "–"], False),
        "beta": (["0.1", "–"], False),
        "seed": (["–", "1"], False),
    }


def test_runs_of_the_same_name_are_told_apart(a_run):
    runs = [read_record(a_run(name)) for name in ("x/run", "y/run", "z")]
    assert [name.split("/")[-2:] for name in run_names(runs)[:2]] == [["x", "run"], ["y", "run"]]


HEAD = "job,rank,beta,train.lr,status,exit_code,value,loss,eval/rewards/accuracies,seconds,folder\n"
JOBS = """\
0,2,0.1,1e-05,complete,0,0.6,0.5,0.6,12.5,x
1,1,0.5,0.0001,complete,0,0.8,0.5,0.8,12.5,x
2,,0.5,1e-05,failed,1,,,,12.5,x
"""


def a_sweep(folder, a_run):
    for job in range(3):
        a_run(f"sweep/{job}")
    (folder / "sweep.csv").write_text(HEAD + JOBS)
    return folder


def test_a_sweep_has_its_table_and_parallel_coordinates(a_run, tmp_path):
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    page = compared([a_sweep(sweep, a_run)], sweep / "report.html")
    assert page.count('class="parallel') == 2
    assert "Accuracy of pairs" in page
    assert "1: beta=0.5, lr=0.0001" in page
    assert page.index("80 %") < page.index("60 %")  # the best first


def test_a_folder_of_runs_stands_for_its_runs(a_run, tmp_path):
    runs = [a_run(f"all/{name}") for name in ("b", "10", "9", "a")]
    (tmp_path / "all" / "other").mkdir()
    assert [path.name for path in expand([tmp_path / "all"])] == ["9", "10", "a", "b"]
    assert expand(runs) == runs


def test_a_folder_without_a_run_beside_others(a_run, tmp_path):
    (tmp_path / "empty").mkdir()
    page = compared([a_run("a"), tmp_path / "empty", a_run("b")], tmp_path / "report.html")
    assert "2 runs" in page
    with pytest.raises(DataError):
        write_report([tmp_path / "empty"], tmp_path / "report.html")


def test_what_was_set_comes_from_the_manifest_else_from_the_defaults(a_run):
    old = read_record(a_run("old", config=CONFIG.replace("0.1", "0.7")))
    changed, rest = split_settings(old)
    assert [one.key for one in changed] == ["model.path", "beta", "train.lr"]
    assert rest == []
    new = read_record(a_run("new", origins={"beta": "command line"}))
    changed, rest = split_settings(new)
    assert [(one.key, one.default, one.origin) for one in changed] == [
        ("beta", "0.1", "command line")
    ]
    assert {one.key for one in rest} == {"model.path", "train.lr"}


def test_many_runs_stay_below_a_megabyte(a_run, tmp_path):
    lines = [{"step": k, **{f"m{j}": (k * j) % 7 / 7 for j in range(20)}} for k in range(1, 400)]
    runs = [a_run(str(k), lines=lines) for k in range(12)]
    page = compared(runs, tmp_path / "report.html")
    assert len(page.encode()) < 1_000_000
    assert json.dumps(len(runs)) in page
