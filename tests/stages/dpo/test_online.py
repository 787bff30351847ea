"""Runs of online DPO: the first loss, equality with offline DPO, ties, resume, evaluation."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf_cli import cli
from rlhf_cli.data.prompts import PromptEncoder
from rlhf_cli.rollout.engines import LocalEngine
from rlhf_cli.rollout.response import Response
from rlhf_cli.train.metrics import read_metrics
from tests.helpers import without_machine
from tests.stages.dpo.conftest import WORDS, words_of

LN_2 = math.log(2)


def test_the_first_loss_is_ln_2_and_the_first_kl_0(online):
    line = online("max_steps=1")[-1]
    assert line["loss"] == pytest.approx(LN_2, abs=1e-6)
    assert line["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert line["rewards/margins"] == pytest.approx(0, abs=1e-6)


def test_metrics_are_those_of_the_responses(online):
    line = online("max_steps=1", "samples_per_prompt=3", "missing_eos_penalty=2")[-1]
    assert line["tokens/response_length"] == 8
    assert line["tokens/eos_fraction"] == 0
    assert line["objective/scores"] == pytest.approx(line["score/letters"] - 2)
    assert 0 < line["objective/score_margin"] <= 2
    assert 0 <= line["objective/ties"] < 1
    names = {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/chosen", "entropy"}
    times = {"time/rollout", "time/score", "time/update", "rollout/distinct", "objective/score_std"}
    assert names | times <= line.keys()


@pytest.mark.slow
def test_the_score_rises(online):
    lines = online("batch_size=8", "max_steps=12", "lr=3e-3", "samples_per_prompt=4", "beta=0.05")
    first = sum(line["objective/scores"] for line in lines[:3]) / 3
    assert lines[-1]["objective/scores"] > first + 0.2
    assert all(math.isfinite(value) for line in lines for value in line.values())


@pytest.fixture
def given_responses(monkeypatch):
    """An engine whose responses to a prompt are texts of our own."""

    def use(texts):
        def generate(self, prompts, *, samples, prompt_numbers, logprobs=False):
            encoder = PromptEncoder(self.tokenizer, as_message=False)
            by_prompt = {tuple(encoder.encode(prompt)): both for prompt, both in texts.items()}
            found = []
            for number, prompt in enumerate(prompts):
                for text in by_prompt[tuple(prompt)]:
                    ids = self.tokenizer.encode(text, add_special_tokens=False)
                    ids = [*ids, self.tokenizer.eos_token_id]
                    found.append(Response(len(found), number, list(prompt), ids, finished=True))
            return found

        monkeypatch.setattr(LocalEngine, "generate", generate)

    return use


@pytest.mark.parametrize(
    "words",
    [
        ["loss_type=[sigmoid,sft]", "beta=0.3", "train.micro_batch_tokens=1"],
        pytest.param(["ld_alpha=0.5"], marks=pytest.mark.slow),
        pytest.param(["loss_type=aot", "label_smoothing=0.1"], marks=pytest.mark.slow),
    ],
)
def test_training_equals_that_of_offline_dpo_on_the_same_pairs(
    words, files, online, given_responses
):
    texts = {
        f"Say {word} {'again ' * i}": (f"no {word}", f"a {word} {'please ' * (i + 1)}eee")
        for i, word in enumerate(WORDS)
    }
    given_responses(texts)
    shared = ["data.shuffle=false", "log.sample_prompts=0", *words]
    first = online(*shared, "max_steps=4", out="online")
    rows = [
        {"prompt": prompt, "chosen": best, "rejected": worst}
        for prompt, (worst, best) in texts.items()
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    offline = [
        "dpo", "model=tiny", "data=pairs.jsonl", "template=never", "model.reference=copy",
        "train.precision=fp32", "lr=1e-3", "batch_size=4", "max_steps=4", *shared,
        "output_dir=offline",
    ]  # fmt: skip
    assert cli.main(offline) == 0
    second = read_metrics(files / "offline" / "metrics.jsonl")
    for name in ("loss", "grad_norm", "rewards/margins", "logps/chosen", "entropy"):
        assert [line[name] for line in first] == [line[name] for line in second]
    weights = [
        load_file(files / run / "model" / "model.safetensors") for run in ("online", "offline")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_ties_are_counted_and_leave_the_loss(online, capsys):
    """Only the prompts with tea have a pair; the loss is the mean over these."""
    lines = online("reward.function=judge.py:first", "batch_size=8", "max_steps=1")
    assert lines[-1]["objective/ties"] == 7 / 8
    assert lines[-1]["loss"] == pytest.approx(LN_2, abs=1e-6)


def test_a_step_of_ties_alone_makes_no_update(online, files, capsys):
    lines = online("reward.function=judge.py:equal", "train.weight_decay=0.1")
    assert [line["objective/ties"] for line in lines] == [1.0] * 3
    assert all("loss" not in line for line in lines)
    assert "step 1: no update, the responses to each prompt are ties" in capsys.readouterr().err
    assert "All scores are 1" in (files / "run" / "log.txt").read_text()


RESUMED = {
    "copy": ["reward.scale=running", "model.reference=copy", "sync_steps=2"],
    "adapter": ["adapter=lora", "loss_type=aot", "label_smoothing=0.1"],
}


def untimed(lines):
    return [
        {name: value for name, value in line.items() if not name.startswith("time/")}
        for line in without_machine(lines)
    ]


@pytest.mark.parametrize("case", ["copy", pytest.param("adapter", marks=pytest.mark.slow)])
def test_a_resumed_run_equals_an_unbroken_one(case, online, files):
    words = [*RESUMED[case], "max_steps=5", "train.save_steps=2", "sample_steps=1"]
    whole = online(*words, out="whole")
    broken = files / "broken"
    shutil.copytree(files / "whole", broken)
    for gone in ("model", "checkpoints/step-000004", "checkpoints/step-000005"):
        shutil.rmtree(broken / gone)
    manifest = broken / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"complete"', '"running"'))
    assert untimed(online(*words, out="broken")) == untimed(whole)
    name = "adapter_model" if case == "adapter" else "model"
    weights = [
        load_file(files / run / "model" / f"{name}.safetensors") for run in ("whole", "broken")
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    samples = [(files / run / "samples.jsonl").read_text() for run in ("whole", "broken")]
    assert samples[0] == samples[1]


def test_samples_are_the_two_responses_of_a_pair(online, files):
    online("max_steps=1", "samples_per_prompt=3")
    rows = [json.loads(line) for line in (files / "run" / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    for best, worst in (rows[:2], rows[2:]):
        assert best["prompt"] == worst["prompt"]
        assert best["score"] >= worst["score"]
        assert best["kl"] == pytest.approx(0, abs=1e-5)


def test_a_failing_pair_is_named(files, online, monkeypatch, capsys):
    from rlhf_cli.stages.dpo import loss

    monkeypatch.setitem(loss.PAIR_LOSSES, "sigmoid", lambda pairs, _: pairs.chosen / 0)
    assert cli.main(words_of("data.shuffle=false")) == 5
    assert "prompts.jsonl:" in capsys.readouterr().err.partition("error: ")[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["train.micro_batch_tokens=1"], ["adapter=lora", "loss_type=ipo"]]
)
def test_micro_batches_and_processes_do_not_matter(words, online, files):
    one = online(*[word for word in words if "micro" not in word], out="one")
    command = [sys.executable, "-m", "rlhf_cli"]
    command += words_of(*words, "launch.processes=2", out="two")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    two = read_metrics(files / "two" / "metrics.jsonl")
    for a, b in zip(one, two, strict=True):
        assert b["objective/scores"] == pytest.approx(a["objective/scores"])  # the same samples
        assert b["objective/ties"] == a["objective/ties"]
        for name in ("loss", "grad_norm", "objective/kl", "rewards/margins"):
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-5)


def test_evaluate_equals_the_evaluation_of_the_run(online, files, sft_run, capsys):
    words = [f"model={sft_run}", "data.eval=4", "max_steps=2"]
    last = online(*words)[-1]
    capsys.readouterr()
    assert cli.main(["evaluate", "run", "precision=fp32", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["results"]
    found = {one["metric"]: one["value"] for one in shown}
    for name in ("score", "kl", "response_length", "eos_fraction"):
        assert found[name] == pytest.approx(last[f"eval/{name}"], rel=1e-4, abs=1e-4)


CONTRADICTIONS = {
    "samples_per_prompt=4": "samples_per_prompt: given with online=false",
    "sampling.top_p=0.9": "sampling.top_p: given with online=false",
    "reward.function=judge.py:letters": "reward.function: given with online=false",
    "missing_eos_penalty=1": "missing_eos_penalty: given with online=false",
    "online=true": "reward.model: none given",
}


@pytest.mark.parametrize("word", CONTRADICTIONS)
def test_what_has_no_effect_is_refused(word, files, capsys):
    assert cli.main(["dpo", "model=tiny", "data=tiny", word, "--cfg"]) == 2
    assert CONTRADICTIONS[word] in capsys.readouterr().err


REFUSED = {
    "loss_type=kto": "loss_type: got kto with online=true; it takes rows with labels",
    "loss_type=simpo": "loss_type: got simpo with online=true; it compares with no reference",
    "model.reference=stored": "model.reference: got stored with online=true",
    "samples_per_prompt=1": "samples_per_prompt: got 1 with online=true",
    "temperature=0": "sampling.temperature: got 0.0",
    "data.packing=true": "data.packing: given, but dpo reads prompts alone",
    "data.format=preference": "data.format: got preference; dpo takes prompts",
    "launch.context_parallel=2": "launch.context_parallel: got 2 with online=true",
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_does_not_go_with_online_is_refused(word, files, capsys):
    assert cli.main([*words_of(word), "--cfg"]) == 2
    assert REFUSED[word] in capsys.readouterr().err
