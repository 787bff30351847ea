"""What is a sweep, and the check of all its jobs before the first one."""

from pathlib import Path

import pytest

from rlhf_cli.config.args import parse
from rlhf_cli.errors import ConfigError, DataError
from rlhf_cli.registry import COMMANDS
from rlhf_cli.sweep.config import Objective
from rlhf_cli.sweep.run import Sweep, plan_sweep

TINY = ("model=tiny", "data=tiny")


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def planned(*words: str, command: str = "sft") -> Sweep:
    return plan_sweep(COMMANDS[command], parse(COMMANDS[command], ["-m", *words]))


def settings(sweep: Sweep) -> list[str]:
    return [" ".join(f"{s.key}={s.text}" for s in job.settings) for job in sweep.jobs]


@pytest.mark.parametrize(
    ("words", "jobs"),
    [
        (["lr=1e-3,1e-4", "seed=0,1"], ["train.lr=0.001 seed=0", "train.lr=0.001 seed=1",
                                        "train.lr=0.0001 seed=0", "train.lr=0.0001 seed=1"]),
        (["seed=range(1,4)"], ["seed=1", "seed=2", "seed=3"]),
        (["seed=choice(5,7)"], ["seed=5", "seed=7"]),
        (["kernels=auto,none"], ["kernels=auto", "kernels=none"]),
        (["train=smoke,{epochs: 2}"], ["train=smoke", "train={epochs: 2}"]),
        (["data.data_dir='a,b',c"], ["data.data_dir=a,b", "data.data_dir=c"]),
        (["data.columns={prompt: a},{prompt: b}"], ["data.columns={prompt: a}",
                                                   "data.columns={prompt: b}"]),
        (["lr=1e-3"], [""]),
        ([], [""]),
    ],
)  # fmt: skip
def test_the_grid_in_hydras_grammar(words, jobs):
    assert settings(planned(*TINY, *words)) == jobs


def test_lists_are_values_like_others():
    sweep = planned("model=tiny", "data=tiny", "data.packing=true,false")
    assert [job.resolved.config.data.packing for job in sweep.jobs] == [True, False]


@pytest.mark.parametrize(
    ("word", "found"),
    [
        (r'data.columns.prompt="a\n{b}","c\\n{d}"', ["a\n{b}", "c\\n{d}"]),
        (r'data.columns={prompt: "a\n{b}"},{prompt: "c\\n{d}"}', ["a\n{b}", "c\\n{d}"]),
    ],
)
def test_escapes_are_resolved_once_in_each_job(word, found):
    jobs = planned(*TINY, word).jobs
    assert [job.resolved.config.data.columns["prompt"] for job in jobs] == found


def test_a_group_and_a_key_of_it_sweep_side_by_side():
    sweep = planned(*TINY, "train=smoke,{epochs: 2}", "lr=1e-3,1e-4")
    trains = [job.resolved.config.train for job in sweep.jobs]
    assert [(train.max_steps, train.epochs, train.lr) for train in trains] == [
        (5, 1, 1e-3), (5, 1, 1e-4), (0, 2, 1e-3), (0, 2, 1e-4)
    ]  # fmt: skip


def test_text_with_one_value_is_no_sweep():
    sweep = planned(*TINY, "data.data_dir=a=b", "output_dir=run#1")
    assert settings(sweep) == [""]
    assert sweep.jobs[0].resolved.config.data.data_dir == "a=b"
    assert sweep.output_dir == "run#1"


def test_all_problems_of_all_jobs_at_once():
    with pytest.raises(ConfigError) as caught:
        planned(*TINY, "lr=1e-3,-1", "epochs=1,0", "sede=3", "output_dir=a,b")
    assert str(caught.value).splitlines() == [
        "sede: no such key in sft; did you mean seed? Try seed=3  (command line)",
        "train.epochs: got 0; need a whole number >= 1. Try train.epochs=1  (command line)",
        "train.lr: got -1; need a number > 0 or auto. Try train.lr=auto  (command line)",
    ]


def test_a_job_without_its_data_is_a_data_error():
    Path("a.jsonl").touch()
    with pytest.raises(DataError, match=r"got b\.jsonl; need a file or folder that exists"):
        planned("model=tiny", "data=a.jsonl,b.jsonl")


def test_jobs_share_a_folder():
    with pytest.raises(ConfigError, match="output_dir: differs between the jobs"):
        planned(*TINY, "output_dir=a,b")
    with pytest.raises(ConfigError, match="output_dir: differs between the jobs"):
        planned(*TINY, "output_dir=runs/${seed}", "seed=1,2")


def test_a_comma_for_a_point_is_no_sweep():
    with pytest.raises(ConfigError, match=r"need a number with a decimal point. Try .*=0\.0001"):
        planned(*TINY, "lr=0,0001")


def test_the_ends_of_an_interval_are_checked():
    words = (*TINY, "hydra/sweeper=optuna")
    assert settings(planned(*words, "lr=interval(1e-5,1e-3)")) == [
        "train.lr=1e-5", "train.lr=0.001"
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="got -1"):
        planned(*words, "lr=interval(-1,1e-3)")


def test_jobs_are_compared_by_one_metric():
    words = (*TINY, "loss_type=sigmoid,kto")
    with pytest.raises(ConfigError) as caught:
        planned(*words, command="dpo")
    assert str(caught.value) == (
        "sweep.metric: differs between the jobs (eval/rewards/accuracies max, eval/loss min); "
        "need one to compare them by. Try sweep.metric=eval/loss sweep.mode=min"
    )
    chosen = planned(*words, "sweep.metric=eval/loss", "sweep.mode=min", command="dpo")
    assert chosen.objective == Objective("eval/loss", "min")
    with pytest.raises(ConfigError, match=r"differs between the jobs \(a min, b min\)"):
        planned(*TINY, "sweep.metric=a,b", "sweep.mode=min")
