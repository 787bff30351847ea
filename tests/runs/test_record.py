import json
import math
import os

import pytest

from rlhf_cli.errors import DataError
from rlhf_cli.runs import lock, manifest
from rlhf_cli.runs.record import read_record
from rlhf_cli.runs.run_files import write_json_atomic

LINES = [
    {"step": 0, "eval/loss": 2.0, "eval/accuracy": 0.5},
    {"step": 1, "loss": 2.5, "lr": 1e-4},
    {"step": 2, "loss": 2.0, "lr": 1e-4, "eval/loss": 1.5, "eval/accuracy": 0.75},
]


def a_run(folder, status="complete", lines=LINES, **more):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("stage: dpo\nbeta: 0.1\ntrain:\n  lr: 1.0e-4\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json_atomic(folder / "manifest.json", {"status": status, "command": "dpo", **more})
    return folder


def test_a_finished_run_is_read_whole(tmp_path):
    run = a_run(tmp_path / "run", steps=2)
    (run / "samples.jsonl").write_text('{"step": 1, "response": "a"}\n')
    (run / "log.txt").write_text("one\ntwo\n")
    record = read_record(run)
    assert (record.tool, record.stage, record.status, record.error) == (
        "rlhf",
        "dpo",
        "complete",
        "",
    )
    assert record.config == {"beta": 0.1, "train": {"lr": 1e-4}}
    assert record.options == {"beta": 0.1, "train.lr": 1e-4}
    assert record.metrics == LINES
    assert record.manifest["steps"] == 2
    assert record.samples == [{"step": 1, "response": "a"}]
    assert record.log[:2] == ["one", "two"]
    assert record.problems == []


def test_lines_of_training_and_of_held_out_rows_are_apart(tmp_path):
    record = read_record(a_run(tmp_path / "run"))
    assert record.training == [
        {"step": 1, "loss": 2.5, "lr": 1e-4},
        {"step": 2, "loss": 2.0, "lr": 1e-4},
    ]
    assert record.evaluations == [
        {"step": 0, "loss": 2.0, "accuracy": 0.5},
        {"step": 2, "loss": 1.5, "accuracy": 0.75},
    ]
    assert record.series("eval/loss") == [(0, 2.0), (2, 1.5)]
    assert record.series("none") == []


@pytest.mark.parametrize("part", ["model", "checkpoints/step-000002"])
def test_a_folder_in_a_run_stands_for_the_run(tmp_path, part):
    run = a_run(tmp_path / "run")
    (run / part).mkdir(parents=True)
    assert read_record(run / part).folder == run


def test_a_run_that_goes_on_is_told_from_one_that_was_killed(tmp_path):
    run = a_run(tmp_path / "run", status="running")
    assert read_record(run).status == "interrupted"
    assert "SIGKILL" in read_record(run).error
    lock.acquire(run)
    assert read_record(run).status == "running"
    lock.release(run)


def test_reading_writes_nothing(tmp_path):
    run = a_run(tmp_path / "run", status="running")
    before = sorted(path.name for path in run.iterdir())
    read_record(run)
    assert sorted(path.name for path in run.iterdir()) == before


def test_the_error_of_a_failed_run_is_kept(tmp_path):
    run = a_run(tmp_path / "run", status="running")
    manifest.fail(run, DataError("rows.jsonl:3: no text"))
    record = read_record(run)
    assert (record.status, record.error) == ("failed", "DataError: rows.jsonl:3: no text")


def test_a_half_last_line_is_ignored_and_broken_ones_are_counted(tmp_path):
    run = a_run(tmp_path / "run")
    text = '{"step": 1, "loss": 2}\n[1]\nnot json\n{"loss": 3}\n{"step": 2, "lo'
    (run / "metrics.jsonl").write_text(text)
    record = read_record(run)
    assert record.metrics == [{"step": 1, "loss": 2}]
    assert len(record.problems) == 2
    assert "2 lines" in record.problems[0]
    assert "no step" in record.problems[1]


def test_values_that_are_not_finite_are_kept_and_counted(tmp_path):
    lines = [{"step": 1, "loss": math.nan, "kl": 1.0}, {"step": 2, "loss": math.inf, "kl": 2.0}]
    record = read_record(a_run(tmp_path / "run", lines=lines))
    assert math.isnan(record.metrics[0]["loss"])
    assert record.series("loss") == []
    assert record.series("kl") == [(1, 1.0), (2, 2.0)]
    assert "2 values are not finite" in record.problems[0]


def test_damaged_files_are_reported_and_the_rest_is_read(tmp_path):
    run = a_run(tmp_path / "run")
    (run / "manifest.json").write_text("{")
    (run / "config.yaml").write_bytes(b"\xff\xfe: [")
    record = read_record(run)
    assert record.status == "unknown"
    assert record.metrics == LINES
    assert [problem.partition(":")[0] for problem in record.problems] == [
        "manifest.json",
        "config.yaml",
    ]


def test_a_pipe_or_folder_in_place_of_a_file_is_not_opened(tmp_path):
    run = a_run(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    (run / "samples.jsonl").mkdir()
    assert read_record(run).metrics == []


def test_a_run_without_metrics_is_a_run(tmp_path):
    run = a_run(tmp_path / "run", status="failed", error="ModelError: no such model")
    (run / "metrics.jsonl").unlink()
    record = read_record(run)
    assert (record.metrics, record.error) == ([], "ModelError: no such model")


def test_the_log_of_transformers_is_read_under_our_names(tmp_path):
    history = [
        {"step": 10, "epoch": 0.1, "loss": 0.69, "learning_rate": 1e-6, "rewards/chosen": 0.1},
        {"step": 10, "eval_loss": 0.7, "eval_rewards/accuracies": 0.5, "eval_runtime": 2.0},
        {"step": 10, "train_runtime": 100.0, "train_loss": 0.69},
    ]
    state = {"log_history": history, "global_step": 10, "max_steps": 20, "logging_steps": 10}
    write_json_atomic(tmp_path / "trainer_state.json", state)
    record = read_record(tmp_path)
    assert (record.tool, record.stage, record.status) == ("transformers", "dpo", "unknown")
    assert record.series("lr") == [(10, 1e-6)]
    assert record.series("eval/loss") == [(10, 0.7)]
    assert record.series("eval/rewards/accuracies") == [(10, 0.5)]
    assert len(record.metrics) == 2
    assert record.options["train.max_steps"] == 20


def test_the_last_checkpoint_of_transformers_has_the_log(tmp_path):
    for step in (90, 100):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        lines = [{"step": step, "loss": 1.0}]
        state = {"log_history": lines, "global_step": step, "max_steps": 100}
        write_json_atomic(folder / "trainer_state.json", state)
    record = read_record(tmp_path)
    assert (record.status, record.series("loss")) == ("complete", [(100, 1.0)])


def test_grpo_of_trl_has_scores_lengths_and_ended_responses(tmp_path):
    line = {"step": 1, "reward": 0.5, "kl": 0.1, "completions/clipped_ratio": 0.25}
    write_json_atomic(tmp_path / "trainer_state.json", {"log_history": [line]})
    record = read_record(tmp_path)
    assert record.stage == "ppo"
    assert record.series("objective/scores") == [(1, 0.5)]
    assert record.series("tokens/eos_fraction") == [(1, 0.75)]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no such folder"),
        (lambda path: path.write_text("x"), "is no folder"),
        (lambda path: path.mkdir(), "holds no run"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(tmp_path, make, said):
    make(tmp_path / "it")
    with pytest.raises(DataError, match=said) as caught:
        read_record(tmp_path / "it")
    assert "\n" not in str(caught.value)


def test_a_model_alone_is_no_run(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="holds a model and no record"):
        read_record(tmp_path)


def test_a_folder_of_runs_names_one(tmp_path):
    for name in ("b", "a"):
        a_run(tmp_path / name)
    with pytest.raises(DataError, match=f"holds 2 runs.*Try {tmp_path / 'a'}"):
        read_record(tmp_path)


def test_damaged_log_of_transformers_is_refused(tmp_path):
    (tmp_path / "trainer_state.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read_record(tmp_path)
