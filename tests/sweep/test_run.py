"""Sweeps from the command line to `sweep.csv`."""

import csv
import importlib.util
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_cli import cli
from rlhf_cli.config.args import Override
from rlhf_cli.sweep import jobs
from rlhf_cli.sweep.config import Objective

TINY = ["model=tiny", "data=tiny"]
LOSS = Objective("eval/loss", "min")
SWEEP = ["sft", "-m", *TINY, "lr=1e-3,1e-4", "output_dir=out"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def started(monkeypatch) -> list[list[str]]:
    """The words of the processes that a sweep starts; seed 9 fails, seed 8 is interrupted."""
    noted: list[list[str]] = []

    def follow(command: list[str]) -> int:
        noted.append(command[3:])
        code = {"seed=9": 5, "seed=8": 130}.get(command[-2], 0)
        out = Path(command[-1].removeprefix("output_dir="))
        out.mkdir(parents=True, exist_ok=True)
        summary = {"status": "failed" if code else "complete", "after": {"loss": 2.5, "acc": 0.5}}
        (out / "manifest.json").write_text(json.dumps(summary))
        return code

    monkeypatch.setattr(jobs, "_run_child", follow)
    return noted


PROCESS = """
import sys
from rlhf_cli import cli
from rlhf_cli.errors import NonFinite

def run(config, out):
    if config.seed == 9:
        raise NonFinite("step 7: the loss is nan")
    return {"after": {"loss": 2.5}}

cli._runner = lambda command: run
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture
def untrained(monkeypatch) -> None:
    """The processes are real, but train nothing."""
    follow = jobs._run_child
    python = [sys.executable, "-c", PROCESS]
    monkeypatch.setattr(jobs, "_run_child", lambda command: follow([*python, *command[3:]]))


def table(sweep: str = "out") -> list[dict[str, str]]:
    with Path(sweep, "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_job_is_a_process_with_the_words_of_a_user(started, folder):
    Path("r.yaml").write_text("seed: 3\n")
    assert cli.main([*SWEEP, "config=r.yaml", "--train.epochs", "2"]) == 0
    common = ["sft", "config=r.yaml", "model=tiny", "data=tiny", "train.epochs=2"]
    assert started == [
        [*common, "train.lr=0.001", f"output_dir={folder}/out/0"],
        [*common, "log.preview=false", "train.lr=0.0001", f"output_dir={folder}/out/1"],
    ]


def test_the_table_has_a_row_for_every_job(started, folder):
    assert cli.main([*SWEEP, "seed=0,1"]) == 0
    rows = table()
    assert list(rows[0]) == [
        "job", "rank", "train.lr", "seed", "status", "exit_code", "value", "loss", "eval/loss",
        "eval/acc", "seconds", "folder",
    ]  # fmt: skip
    assert [(row["job"], row["train.lr"], row["seed"]) for row in rows] == [
        ("0", "0.001", "0"), ("1", "0.001", "1"), ("2", "0.0001", "0"), ("3", "0.0001", "1")
    ]  # fmt: skip
    assert {(row["status"], row["loss"], row["eval/acc"]) for row in rows} == {
        ("complete", "2.5", "0.5")
    }


@pytest.mark.usefixtures("started")
def test_a_job_that_fails_stops_no_other(capsys, folder):
    assert cli.main(["sft", "-m", *TINY, "seed=1,9,2", "output_dir=out"]) == 1
    assert [row["status"] for row in table()] == ["complete", "failed", "complete"]
    assert f"job 1: failed with exit code 5: {folder}/out/1\n" in capsys.readouterr().err


def test_an_interrupted_job_ends_the_sweep(started):
    assert cli.main(["sft", "-m", *TINY, "seed=1,8,2", "output_dir=out"]) == 130
    assert len(started) == 2
    assert [row["status"] for row in table()] == ["complete", "interrupted"]
    assert not Path("out/.lock").exists()


@pytest.mark.usefixtures("started")
def test_hydra_leaves_nothing_of_its_own(folder, capsys):
    assert cli.main(["sft", "-m", *TINY, "seed=1,2"]) == 0
    assert [path.name for path in folder.iterdir()] == ["runs"]
    [sweep] = Path("runs").iterdir()
    assert sweep.name.startswith("sft-sweep-")
    assert {path.name for path in sweep.iterdir()} == {
        "0", "1", ".jobs", "sweep.csv", "multirun.yaml", "report.html"
    }  # fmt: skip
    out, err = capsys.readouterr()
    assert err.splitlines() == ["job 0: seed=1", "job 1: seed=2"]
    assert out.splitlines() == [
        "rank  job  seed  status    eval/loss",
        "1     0    1     complete  2.5",
        "2     1    2     complete  2.5",
        f"best by eval/loss (min): job 0: {sweep.absolute()}/0",
        f"sweep: 2 of 2 jobs complete -> {sweep.absolute()}/sweep.csv",
    ]


def test_all_jobs_are_checked_before_the_first(started, capsys, folder):
    assert cli.main(["sft", "-m", *TINY, "seed=1,x", "lr=1,-1"]) == 2
    assert [line.split(": got")[0] for line in capsys.readouterr().err.splitlines()] == [
        "error: train.lr", "error: seed"
    ]  # fmt: skip
    assert started == []
    assert list(folder.iterdir()) == []


def test_a_job_whose_process_was_killed_keeps_its_row(monkeypatch):
    def die(command: list[str]) -> int:
        raise RuntimeError("as if killed")

    monkeypatch.setattr(jobs, "_run_child", die)
    with pytest.raises(RuntimeError):
        jobs.run_job(["sft"], [Override("seed", "1")], Path.cwd(), 0, LOSS)
    jobs.write_table(Path.cwd(), LOSS)
    [row] = table(".")
    assert (row["seed"], row["status"], row["exit_code"], row["loss"]) == ("1", "unknown", "", "")


def test_cfg_shows_the_jobs_and_runs_none(started, capsys):
    assert cli.main([*SWEEP, "--cfg"]) == 0
    first, second = capsys.readouterr().out.split("---\n")
    assert first.startswith("# job 0: train.lr=0.001\nstage: sft\n")
    assert "  lr: 0.0001\n" in second
    assert started == []


@pytest.mark.usefixtures("untrained")
def test_the_same_sweep_again_skips_what_is_done_and_another_grid_is_refused(capfd, folder):
    assert cli.main(SWEEP) == 0
    before = table()
    assert cli.main(SWEEP) == 0
    assert capfd.readouterr().out.count("already complete: ") == 2
    assert table() == before
    assert cli.main(["sft", "-m", *TINY, "lr=1e-3,1e-2", "output_dir=out"]) == 2
    assert capfd.readouterr().err.splitlines() == [
        f"error: output_dir: {folder}/out/1 holds a run with other values; use the same or another "
        "output_dir",
        "error:   train.lr: 0.0001 -> 0.01",
    ]


@pytest.mark.usefixtures("untrained")
def test_a_job_that_failed_is_forgotten_when_it_runs_no_more():
    cli.main(["sft", "-m", *TINY, "seed=1,9", "output_dir=out"])
    assert cli.main(["sft", "-m", *TINY, "seed=1", "output_dir=out"]) == 0
    assert [row["job"] for row in table()] == ["0"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["hydra/launcher=rq"], "hydra/launcher: got rq, which is not installed. "
         "Try pip install hydra-rq-launcher"),
        (["hydra/launcher=bsic"], "hydra/launcher: got bsic; need one of "),
        (["hydra/sweeper=ax"], "hydra/sweeper: got ax, which is not installed. "
         "Try pip install hydra-ax-sweeper"),
        (["hydra.x=1"], "-m: Hydra refuses the sweep: Could not override 'hydra.x': "),
        (["lr=interval(1e-4,1e-3)"], "-m: Hydra refuses the sweep: BasicSweeper does not support "
         "sweep type : INTERVAL_SWEEP. Try hydra/sweeper=optuna"),
    ],
)  # fmt: skip
def test_what_hydra_refuses_is_one_line_and_leaves_no_folder(words, line, started, capsys, folder):
    assert cli.main(["sft", "-m", *TINY, "seed=1,2", "output_dir=out", *words]) == 2
    [told] = capsys.readouterr().err.splitlines()
    assert told.startswith(f"error: {line}")
    assert started == []
    assert list(folder.iterdir()) == []


def test_a_run_is_no_sweep_and_a_verb_has_none(monkeypatch, capsys, folder):
    monkeypatch.setattr(cli, "_runner", lambda command: lambda *args: {})
    cli.main(["sft", *TINY, "output_dir=out"])
    capsys.readouterr()
    assert cli.main(SWEEP) == 2
    assert capsys.readouterr().err == (
        f"error: output_dir: {folder}/out holds a run; a sweep needs a folder of its own\n"
    )
    assert cli.main(["generate", "-m", "model=tiny", "prompt=a,b"]) == 2
    assert capsys.readouterr().err == (
        "error: -m: sweeps are for training commands, not for generate\n"
    )


def test_the_final_value_is_that_of_held_out_rows_else_of_training(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{}\n')
    assert jobs.final_metric(tmp_path, "eval/loss") == 2
    (tmp_path / "manifest.json").write_text('{"after": {"loss": 1.5}}')
    assert jobs.final_metric(tmp_path, "eval/loss") == 1.5
    assert jobs.final_metric(tmp_path, "loss") == 2
    assert math.isnan(jobs.final_metric(tmp_path, "eval/accuracy"))
    assert math.isnan(jobs.final_metric(tmp_path / "nowhere", "eval/loss"))


@pytest.mark.parametrize(
    ("metric", "in_training"),
    [
        ("eval/score", "objective/scores"),
        ("eval/kl", "objective/kl"),
        ("eval/response_length", "tokens/response_length"),
    ],
)
def test_a_metric_that_has_another_name_in_training_is_found(metric, in_training, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, in_training: 1.25}) + "\n")
    assert jobs.final_metric(tmp_path, metric) == 1.25


@pytest.mark.usefixtures("started")
def test_a_sweeper_is_given_a_number_to_minimize_and_infinity_of_a_failed_job(tmp_path):
    greatest = Objective("eval/acc", "max")
    for seed, objective, cost in ((1, LOSS, 2.5), (2, greatest, -0.5), (9, greatest, math.inf)):
        setting = [Override("seed", str(seed))]
        assert jobs.run_job(["sft"], setting, tmp_path, seed, objective) == cost


# What is the best


@pytest.fixture
def graded(monkeypatch) -> None:
    """Each job reaches the metrics that are written here for its seed."""
    reached = {
        "1": {"loss": 0.6, "rewards/accuracies": 0.7, "score": 1.0, "kl": 9.0},
        "2": {"loss": 0.9, "rewards/accuracies": 0.8, "score": 3.0, "kl": 5.0},
        "3": {"loss": 0.5, "rewards/accuracies": 0.6, "score": 2.0, "kl": 1.0},
    }

    def follow(command: list[str]) -> int:
        given = dict(word.split("=", 1) for word in command[4:])
        out = Path(given["output_dir"])
        out.mkdir(parents=True, exist_ok=True)
        summary = {"status": "complete", "after": reached[given["seed"]]}
        (out / "manifest.json").write_text(json.dumps(summary))
        return 0

    monkeypatch.setattr(jobs, "_run_child", follow)


PPO = ["reward.length_penalty=1"]


@pytest.mark.usefixtures("graded")
@pytest.mark.parametrize(
    ("words", "name", "order"),
    [
        (["sft"], "eval/loss (min)", "312"),
        (["dpo"], "eval/rewards/accuracies (max)", "213"),
        (["dpo", "loss_type=kto"], "eval/loss (min)", "312"),
        (["ppo", *PPO], "eval/score (max)", "231"),
        (["ppo", *PPO, "sweep.metric=eval/kl", "sweep.mode=min"], "eval/kl (min)", "321"),
    ],
)
def test_runs_are_compared_by_what_the_stage_is_for(words, name, order, capsys):
    stage, *others = words
    assert cli.main([stage, "-m", *TINY, *others, "seed=1,2,3", "output_dir=out"]) == 0
    *lines, best, _ = capsys.readouterr().out.splitlines()
    assert "".join(line.split()[2] for line in lines[1:]) == order
    assert best.startswith(f"best by {name}: job {int(order[0]) - 1}: ")
    ranks = {row["seed"]: row["rank"] for row in table()}
    assert sorted(ranks, key=ranks.__getitem__) == list(order)


@pytest.mark.usefixtures("graded")
def test_the_kl_stands_beside_the_score(capsys):
    cli.main(["ppo", "-m", *TINY, *PPO, "seed=1,2", "output_dir=out"])
    head, first, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["rank", "job", "seed", "status", "eval/score", "eval/kl", "eval/loss"]
    assert first.split() == ["1", "1", "2", "complete", "3", "5", "0.9"]


@pytest.mark.usefixtures("started")
def test_a_sweep_of_ppo_without_held_out_rows_goes_by_the_scores_of_training(monkeypatch, capsys):
    def follow(command: list[str]) -> int:
        given = dict(word.split("=", 1) for word in command[4:])
        out = Path(given["output_dir"])
        out.mkdir(parents=True, exist_ok=True)
        (out / "manifest.json").write_text('{"status": "complete"}')
        line = {"step": 1, "loss": 0.5, "objective/scores": float(given["seed"])}
        (out / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        return 0

    monkeypatch.setattr(jobs, "_run_child", follow)
    words = ["data.eval=none", "seed=1,3,2", "output_dir=out"]
    assert cli.main(["ppo", "-m", *TINY, *PPO, *words]) == 0
    head, first, *_, best, _ = capsys.readouterr().out.splitlines()
    assert "objective/scores (training)" in head
    assert first.split() == ["1", "1", "3", "complete", "3"]
    assert best.startswith("best by objective/scores (training) (max): job 1: ")


@pytest.mark.usefixtures("graded")
def test_a_metric_that_no_job_has_is_told(capsys):
    words = ["sweep.metric=eval/nothing", "sweep.mode=max"]
    assert cli.main(["sft", "-m", *TINY, *words, "seed=1,2", "output_dir=out"]) == 0
    out, err = capsys.readouterr()
    assert "best by" not in out
    assert err.splitlines()[-1] == (
        "sweep.metric: no job has eval/nothing; they have eval/loss, eval/rewards/accuracies, "
        "eval/score, eval/kl"
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["sweep.metric=eval/kl"], "sweep.mode: none given with sweep.metric=eval/kl; need min or "
         "max. Try sweep.mode=min"),
        (["sweep.mode=max"], "sweep.mode: got max with sweep.metric=auto, which has its own. Try "
         "sweep.mode=auto  (command line)"),
        (["hydra.sweeper.direction=maximize"], "hydra.sweeper.direction: got maximize, but a "
         "sweeper is given a number to minimize. Leave it out, and try sweep.mode=max"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_a_sweep_is_one_line(words, line, started, capsys):
    assert cli.main(["sft", "-m", *TINY, "seed=1,2", *words]) == 2
    assert capsys.readouterr().err.splitlines() == [f"error: {line}"]
    assert started == []


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["seed=1,2"], [True, False]),
        (["data.max_length=64,128"], [True, True]),
        (["seed=1,2", "log.preview=true"], [True, True]),
    ],
)
def test_the_first_job_shows_the_first_example_for_those_with_the_same_rows(words, shown, started):
    assert cli.main(["sft", "-m", *TINY, *words, "output_dir=out"]) == 0
    assert ["log.preview=false" not in call for call in started] == shown


def test_a_signal_reaches_the_job_once_and_its_end_is_awaited(tmp_path):
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *a: (print('told', flush=True), sys.exit(130)))\n"
        "print('up', flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = (
        "import sys; from rlhf_cli.sweep.jobs import _run_child; "
        "sys.exit(_run_child([sys.executable, '-c', sys.argv[1]]))"
    )
    command = [sys.executable, "-c", parent, program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sweep:
        assert sweep.stdout
        assert sweep.stdout.readline() == "up\n"
        sweep.send_signal(signal.SIGTERM)
        assert sweep.stdout.read() == "told\n"
    assert sweep.returncode == 130


def test_a_killed_job_has_the_code_of_a_shell():
    program = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert jobs._run_child([sys.executable, "-c", program]) == 137


def installed(plugin: str) -> bool:
    if not importlib.util.find_spec("hydra_plugins"):
        return False
    return importlib.util.find_spec(f"hydra_plugins.{plugin}") is not None


needs_joblib = pytest.mark.skipif(not installed("hydra_joblib_launcher"), reason="not installed")
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], pytest.param(JOBLIB, marks=needs_joblib)])
def test_a_real_sweep(launcher):
    assert cli.main([*SWEEP, "train=smoke", "data.eval=none", *launcher]) == 0
    assert [row["status"] for row in table()] == ["complete", "complete"]
    assert float(table()[0]["loss"]) < float(table()[1]["loss"]), "the larger step learns more"
    assert Path("out/1/model").is_dir()
