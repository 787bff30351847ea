"""What a run says at its end: changes with intervals, the result, and the next command."""

import json

from rlhf_cli.runs.record import RunRecord, read_record
from rlhf_cli.runs.summary import Change, summarize


def write_run(folder, metrics, **manifest):
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"status": "complete", **manifest}))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in metrics))
    return read_record(folder)


def test_changes_of_held_out_rows_come_with_their_intervals(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = write_run(
        tmp_path / "run",
        [{"step": 1, "loss": 9.0}],
        command="dpo",
        before={"loss": 0.6931, "rewards/accuracies": 0.0},
        after={"loss": 0.5, "rewards/accuracies": 0.75},
        intervals={"after": {"loss": [0.4, 0.6], "rewards/accuracies": [0.66, 0.82]}},
    )
    found = summarize(record)
    assert found.held_out
    assert [str(change) for change in found.changes] == [
        "0.6931 → 0.5 [0.4, 0.6]",
        "0 → 0.75 [0.66, 0.82]",
    ]
    assert found.next == "rlhf chat run"


def test_a_run_without_held_out_rows_shows_its_first_and_last_step(tmp_path):
    lines = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0, "eval/loss": 1.0}]
    found = summarize(write_run(tmp_path / "run", lines, command="sft"))
    assert not found.held_out
    assert found.changes == [Change("loss", 3.0, 2.0)]
    assert found.steps == 2


def test_ppo_shows_score_and_kl_first(tmp_path):
    line = {"step": 1, "loss": 3.0, "objective/scores": 0.5, "objective/kl": 1.0}
    found = summarize(write_run(tmp_path / "run", [line], command="ppo"))
    assert [change.metric for change in found.changes] == [
        "objective/scores",
        "objective/kl",
        "loss",
    ]


def test_a_folder_with_a_space_is_quoted_in_the_next_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = summarize(RunRecord(folder=tmp_path / "my run", stage="reward"))
    assert found.next == "rlhf score 'my run' data=FILE"
    assert found.changes == []


def test_rounding_errors_around_zero_are_shown_as_zero():
    assert str(Change("accuracy", 0.0, 0.5, [3.5e-18, 0.04])) == "0 [0, 0.04] → 0.5"
    assert str(Change("margin", 2.861e-07, 0.03364)) == "0 → 0.03364"
