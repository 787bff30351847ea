"""Contradictions and models in the wrong role: refused before anything is loaded."""

import pytest

from rlhf_cli import cli

TINY = ("model=tiny", "data=tiny")


@pytest.fixture(autouse=True)
def _an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(capsys, code, *words):
    assert cli.main([*map(str, words)]) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return [line for line in said.splitlines() if line.startswith("error:")][-1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["dpo", "loss_type=robust"], "label_smoothing: got 0.0 with loss_type=robust"),
        (["dpo", "loss_type=exo_pair"], "whose loss is then infinite"),
        (["dpo", "label_smoothing=0.5"], "label_smoothing: got 0.5; need a number >= 0 and < 0.5"),
        (["dpo", "loss_type=[sigmoid,kto]"], "stands alone"),
        (["dpo", "loss_type=[sigmoid,sigmoid]"], "need each name once"),
        (["dpo", "loss_type=nca_pair", "f_divergence=js"], "f_divergence: got js"),
        (["dpo", "loss_type=aot", "wpo=true"], "wpo: got true"),
        (["dpo", "loss_type=kto", "ld_alpha=0.5"], "ld_alpha: got 0.5"),
        (["dpo", "simpo_gamma=1"], "simpo_gamma: got 1.0"),
        (["dpo", "sync_steps=5"], "need a reference that can move"),
        (["dpo", "model.reference=none"], "compares with a reference"),
        (["dpo", "model.reference=adapter_off"], "need a new adapter to take away"),
        (["dpo", "model.reference=stroed"], "Try model.reference=stored"),
        (["dpo", "data.packing=true"], "data.packing: got true"),
        (["dpo", "data.train_on=all"], "data.train_on: got all"),
        (["dpo", "data.format=chat"], "data.format: got chat"),
        (["bco", "model.reference=none"], "bco compares with a reference"),
        (["bco", "delta_decay=0.5"], "Try delta=ema"),
        (["bco", "desirable_weight=0", "undesirable_weight=0"], "no row counts"),
        (["reward", "loss_type=binary", "center_coefficient=0.1"], "Try center_coefficient=0"),
    ],
)
def test_contradictions_are_told_before_anything_is_loaded(words, says, capsys):
    stage, *rest = words
    assert says in refused(capsys, 2, stage, *TINY, *rest)


@pytest.fixture(scope="module")
def reward_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "reward"
    words = ["max_steps=1", "train.precision=fp32", "data.eval=none", f"output_dir={out}"]
    assert cli.main(["reward", *TINY, *words]) == 0
    return out


@pytest.mark.parametrize("stage", ["sft", "dpo", "bco", "pretrain"])
def test_a_reward_run_is_no_policy(stage, reward_run, capsys):
    said = refused(capsys, 2, stage, f"model={reward_run}", "data=tiny")
    assert "a reward model, which gives scores and writes no text" in said


def test_a_reward_run_writes_nothing_and_is_no_reference(reward_run, capsys):
    assert "a reward model" in refused(capsys, 2, "generate", reward_run, "prompt=x")
    said = refused(capsys, 2, "dpo", *TINY, f"model.reference={reward_run}")
    assert "model.reference: got" in said
