"""Every metric that a run writes is explained."""

import re

import pytest

from rlhf_cli.report.glossary import METRICS, describe, find
from rlhf_cli.report.metric import GROUPS
from rlhf_cli.report.page import run_page
from rlhf_cli.runs.record import read_record
from tests.imports import ROOT
from tests.report.conftest import CONFIG
from tests.stages.conftest import sft_run, small_model

__all__ = ["sft_run", "small_model"]


def written_names():
    """Names of metrics with a slash that the code writes, and those that the loop measures."""
    groups = "objective|policy|tokens|value|loss|time|rollout|rewards|logps|router"
    pattern = rf'"((?:{groups})/[a-z_]+)"'
    files = [*ROOT.glob("stages/**/*.py"), *ROOT.glob("train/*.py")]
    found = {name for file in files for name in re.findall(pattern, file.read_text())}
    loop = (ROOT / "train" / "loop.py").read_text()
    return found | {*re.findall(r'^ +"([a-z_]+)": \((?:torch|work|gradients)', loop, re.M)}


@pytest.mark.parametrize("name", sorted(written_names()))
def test_each_name_in_the_code_is_explained(name):
    assert find(name) is not None


def test_each_metric_of_a_run_is_explained(sft_run):
    names = {name for name in read_record(sft_run).names if name != "step"}
    assert {"loss", "eval/perplexity", "memory_bytes", "peak_fraction"} <= names
    assert {name for name in names if find(name) is None} == set()


OTHERS = "accuracy margin score absolute_error delta kl entropy bits_per_byte auc eos_fraction"


@pytest.mark.parametrize("name", [*OTHERS.split(), "eval/response_length", "score/helpfulness"])
def test_names_of_other_stages_are_explained(name):
    assert find(name) is not None


def test_entries_are_whole():
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.group in GROUPS
        assert metric.label
        assert metric.merged
        assert metric.meaning.endswith(".")
        assert not metric.advice or metric.advice.endswith(".")
        if metric.healthy:
            assert metric.healthy[0] < metric.healthy[1]
        if metric.train_name:
            assert metric.train_name in METRICS


def test_a_foreign_metric_is_its_own_label(a_run):
    assert find("rewards/JudgeFunc/mean") is None
    assert describe("eval/rewards/JudgeFunc/mean").label == "rewards/JudgeFunc/mean"
    assert find("score/judge").label == "Score of reward “judge”"
    run = a_run(lines=[{"step": k, "odd/name": k * 1.0} for k in range(3)], config=CONFIG)
    assert "odd/name" in run_page(read_record(run))
