"""`rlhf doctor` as it is typed, and the lines at the end of a training log."""

import json

import pytest

from rlhf_cli import cli
from rlhf_cli.diagnosis.at_end import log_diagnosis
from rlhf_cli.runs.run_files import write_json_atomic

CALM = [{"step": step, "loss": 3 / step, "lr": 1e-4} for step in range(1, 31)]
RISING = [{"step": step, "loss": 1.0 + step, "lr": 1e-1} for step in range(1, 31)]


def write_run(folder, lines, status="complete"):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("stage: sft\ntrain:\n  lr: 1.0e-1\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json_atomic(folder / "manifest.json", {"status": status, "command": "sft"})
    return folder


def doctor(capsys, *words):
    code = cli.main(["doctor", *map(str, words)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_healthy_run_exits_with_0(tmp_path, capsys):
    code, out, err = doctor(capsys, write_run(tmp_path / "run", CALM))
    assert (code, err) == (0, "")
    assert "sft, complete, 30 steps" in out
    assert "no problem found" in out


def test_a_problem_exits_with_1_and_has_advice_to_paste(tmp_path, capsys):
    code, out, _ = doctor(capsys, write_run(tmp_path / "run", RISING))
    assert code == 1
    assert "problem: The training loss rose" in out
    assert "train.lr=0.01" in out
    assert "[loss.rose]" in out


def test_several_runs_are_examined_one_after_the_other(tmp_path, capsys):
    runs = [write_run(tmp_path / "a", CALM), write_run(tmp_path / "b", RISING)]
    code, out, _ = doctor(capsys, *runs)
    assert code == 1
    assert out.index(str(runs[0])) < out.index(str(runs[1]))


def test_json_has_every_finding(tmp_path, capsys):
    run = write_run(tmp_path / "run", RISING)
    code, out, _ = doctor(capsys, run, "--json")
    [found] = json.loads(out)["runs"]
    assert code == 1
    assert (found["stage"], found["status"], found["healthy"]) == ("sft", "complete", False)
    worst = found["findings"][0]
    assert (worst["code"], worst["severity"]) == ("loss.rose", "problem")
    assert worst["advice"][0] == "train.lr=0.01"
    assert worst["numbers"]["last"] > worst["numbers"]["first"]


def test_the_switch_may_stand_before_the_run(tmp_path, capsys):
    code, out, _ = doctor(capsys, "--json", write_run(tmp_path / "run", CALM))
    assert (code, json.loads(out)["healthy"]) == (0, True)


@pytest.mark.parametrize("status", ["running", "failed", "interrupted"])
def test_a_run_in_any_state_is_read(tmp_path, capsys, status):
    code, out, _ = doctor(capsys, write_run(tmp_path / "run", CALM[:3], status))
    assert code == (status == "failed")
    assert "after step 3" in out


def test_a_run_without_metrics_is_read(tmp_path, capsys):
    code, out, _ = doctor(capsys, write_run(tmp_path / "run", []))
    assert code == 0
    assert "No training step was logged" in out


def test_a_half_line_is_not_counted_and_a_broken_one_is_told(tmp_path, capsys):
    run = write_run(tmp_path / "run", CALM)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('oh\n{"step": 31, "lo')
    code, out, _ = doctor(capsys, run)
    assert code == 0
    assert "not read: metrics.jsonl: 1 line" in out


def test_control_characters_of_an_error_do_not_reach_the_terminal(tmp_path, capsys):
    run = write_run(tmp_path / "run", CALM, "failed")
    manifest = {"status": "failed", "command": "sft", "error": "DataError: \x1b[2Jboo"}
    write_json_atomic(run / "manifest.json", manifest)
    _, out, _ = doctor(capsys, run)
    assert "\x1b" not in out
    assert "boo" in out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "run: none given"),
        (["nowhere"], 3, "nowhere: no such folder"),
        (["."], 3, "holds no run"),
        (["runs/x", "reward=tiny", "policy=tiny", "prompts=tiny"], 2, "run: got runs/x"),
        (["reward=tiny"], 2, "policy: none given"),
        (["runs/x", "prompts=tiny"], 2, "prompts: given without reward"),
        (["runs/x", "--jsno"], 2, "jsno"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(tmp_path, monkeypatch, capsys, words, code, said):
    monkeypatch.chdir(tmp_path)
    found, out, err = doctor(capsys, *words)
    assert (found, out) == (code, "")
    assert said in err


def test_a_training_log_ends_with_the_diagnosis(run_of):
    log = (run_of("sft") / "log.txt").read_text().splitlines()
    lines = [line for line in log if line.startswith("diagnosis: ")]
    assert lines == [log[log.index(lines[0])]]
    assert "found in" in lines[0]
    assert log.index(lines[0]) > next(k for k, x in enumerate(log) if x.startswith("result: "))


def test_the_diagnosis_never_fails_a_run(tmp_path, capsys):
    log_diagnosis(tmp_path / "gone", {})
    assert "diagnosis: could not be made" in capsys.readouterr().err
