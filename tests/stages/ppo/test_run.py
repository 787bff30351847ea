"""Runs of PPO: invariances, resume, metrics, samples and evaluation."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf_cli import cli
from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.losses.reduction import LossOutput, LossTerm
from rlhf_cli.models.wrapper import ModelWrapper
from rlhf_cli.rollout import engine
from rlhf_cli.rollout.response import Response
from rlhf_cli.stages.ppo import setup
from rlhf_cli.stages.ppo.columns import PTX_MASK
from rlhf_cli.stages.ppo.loss import PPOLoss
from rlhf_cli.stages.rollouts.minibatches import make_minibatches
from rlhf_cli.train.metrics import read_metrics
from rlhf_cli.train.optim import MasterAdamW
from tests.helpers import without_machine
from tests.rollout import tape
from tests.stages.ppo.conftest import words_of

ADVANTAGES = ("gae", "grpo", "rloo", "reinforce_baseline", "reinforce_pp")
ONCE = ("ppo_epochs=1", "minibatches=1", "max_steps=1")


@pytest.mark.parametrize(
    "advantage",
    [
        "gae",
        "grpo",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ADVANTAGES[2:]),
    ],
)
def test_the_score_rises_with_every_estimator(advantage, ppo):
    several = [] if advantage == "gae" else ["samples_per_prompt=4"]
    words = ["batch_size=8", "max_steps=10", "lr=3e-3", "kl_coef=0.001", "whiten_rewards=true"]
    lines = ppo(f"advantage={advantage}", *several, *words)
    assert lines[-1]["objective/scores"] > lines[0]["objective/scores"] + 0.2
    assert all(math.isfinite(value) for line in lines for value in line.values())


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_the_first_ratio_is_1_and_the_first_kl_0(attention, ppo):
    (line,) = ppo(*ONCE, f"model.attention={attention}")
    exact = attention == "auto"
    assert line["policy/ratio"] == pytest.approx(1, abs=0 if exact else 1e-5)
    assert line["policy/approx_kl"] == pytest.approx(0, abs=0 if exact else 1e-10)
    assert line["objective/kl"] == pytest.approx(0, abs=0 if exact else 1e-5)


def test_optimizer_steps_are_epochs_times_minibatches(ppo, monkeypatch):
    calls = []
    real = MasterAdamW.step
    monkeypatch.setattr(MasterAdamW, "step", lambda self, lr: (calls.append(lr), real(self, lr)))
    ppo("ppo_epochs=3", "minibatches=4", "max_steps=2")
    assert len(calls) == 2 * 3 * 4


@pytest.mark.parametrize("samples", [1, 3])
def test_every_minibatch_has_responses_of_every_rank(samples):
    for rank in range(8):
        numbers = [
            place * samples + sample
            for place in Ranks(rank, 8).shard(64)
            for sample in range(samples)
        ]
        responses = [Response(number, 0, [1], [2], True) for number in numbers]
        parts = make_minibatches(responses, 8, 1000, torch.device("cpu"))
        assert [sum(len(micro.members) for micro in part) for part in parts] == [samples] * 8


def test_a_failing_row_of_ptx_data_is_named(files, monkeypatch, capsys):
    Path("text.jsonl").write_text('{"text": "One fine day."}\n{"text": "Another."}\n')
    damaged = lambda self, rows: LossOutput(  # noqa: E731
        {"ptx": LossTerm(self.policy(rows).logp.sum() / 0, PTX_MASK, 1.0)}
    )
    monkeypatch.setattr(PPOLoss, "_ptx_loss", damaged)
    assert cli.main(words_of("ptx_coef=1", "ptx_data=text.jsonl", "data.shuffle=false")) == 5
    shown = capsys.readouterr().err
    assert re.search(r"  ptx_data \S*text.jsonl:[12]: loss is not finite", shown)
    assert "prompts.jsonl" not in shown.partition("error: ")[2]


def test_metric_names(ppo):
    line = ppo("max_steps=1")[-1]
    names = {
        "objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward",
        "objective/scores", "policy/approx_kl", "policy/clip_fraction", "policy/entropy",
        "loss/policy", "loss/value", "value/clip_fraction", "policy/ratio", "tokens/eos_fraction",
        "tokens/response_length", "time/rollout", "time/score", "time/update", "objective/kl_coef",
    }  # fmt: skip
    assert names <= line.keys()
    assert line["objective/rlhf_reward"] == pytest.approx(
        line["objective/scores"] + line["objective/non_score_reward"], abs=1e-6
    )


def require_equal(expected, got):
    for name, most in (("loss", 1e-5), ("grad_norm", 1e-4), ("objective/kl", 1e-5)):
        for a, b in zip(expected, got, strict=True):
            assert b[name] == pytest.approx(a[name], rel=most, abs=most)


def test_micro_batch_size_does_not_matter(ppo):
    require_equal(ppo(out="whole"), ppo("train.micro_batch_tokens=1", out="cut"))


@pytest.mark.parametrize("side", [pytest.param("left", marks=pytest.mark.slow), "right"])
def test_padding_does_not_matter(side, ppo, monkeypatch):
    flat = ppo(out="flat")
    monkeypatch.setattr(ModelWrapper, "padding_side", side)
    require_equal(flat, ppo("model.attention=sdpa", out="padded"))


@pytest.mark.parametrize(
    "words",
    [
        pytest.param((), marks=pytest.mark.slow),
        pytest.param(("advantage=rloo", "samples_per_prompt=2"), marks=pytest.mark.slow),
        pytest.param(("batch_size=1", "minibatches=1"), marks=pytest.mark.slow),
        pytest.param(
            (
                *("advantage=grpo", "samples_per_prompt=2", "sampling.stop=[e,a,o]", "scale=batch"),
                *("loss_aggregation=sequence", "ratio=sequence", "mask_truncated=true"),
                *("entropy_target=9", "entropy_coef=0.1", "minibatch_shuffle=true", "max_steps=2"),
            ),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_two_processes_equal_one(words, ppo, files):
    """Also where a rank has no prompt in a step."""
    one = ppo(*words, out="one")
    command = [sys.executable, "-m", "rlhf_cli"]
    command += words_of(*words, "launch.processes=2", out="two")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    two = read_metrics(files / "two" / "metrics.jsonl")
    require_equal(one, two)
    for name in ("objective/scores", "tokens/response_length"):  # the same samples
        assert [line[name] for line in two] == pytest.approx([line[name] for line in one])


RESUMED = {
    "shared": ["kl_controller=adaptive", "reward.scale=running", "value_warmup_steps=3"],
    "adapters": ["adapter=lora", "adapter.rank=2", "value=adapter", "value_lr=1e-2"],
    "text": ["ptx_coef=0.5", "ptx_data=text.jsonl", "ptx_batch_size=2"],
    "reuse": ["rollout_logprobs=reuse"],
    "grpo": ["advantage=grpo", "samples_per_prompt=2", "kl_in=loss", "kl_estimator=k3"],
    "redrawn": [
        *("advantage=grpo", "samples_per_prompt=2", "dynamic_sampling=2", "reward.scale=running"),
        "reward.function=judge.py:some",
    ],
    "entropy": ["entropy_target=3", "entropy_step=0.1", "minibatch_shuffle=true", "kl_coef=0"],
}


QUICK = ("shared", "adapters", "grpo", "redrawn")


@pytest.mark.parametrize(
    "case",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RESUMED],
)
def test_a_resumed_run_equals_an_unbroken_one(case, ppo, files):
    Path("text.jsonl").write_text("".join(f'{{"text": "Tea is {i}."}}\n' for i in range(5)))
    words = [*RESUMED[case], "max_steps=4", "train.save_steps=2", "sample_steps=1"]
    ppo(*words, out="unbroken")
    unbroken, broken = files / "unbroken", files / "broken"
    shutil.copytree(unbroken, broken)
    for gone in ("model", "checkpoints/step-000004"):
        shutil.rmtree(broken / gone)
    manifest = broken / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"complete"', '"running"'))
    ppo(*words, out="broken")
    first, second = (
        [
            {name: value for name, value in line.items() if not name.startswith("time/")}
            for line in without_machine(read_metrics(out / "metrics.jsonl"))
        ]
        for out in (unbroken, broken)
    )
    assert first == second
    assert (unbroken / "samples.jsonl").read_text() == (broken / "samples.jsonl").read_text()
    for name in ("weights", "optimizer"):
        saved = [
            load_file(out / "checkpoints" / "step-000004" / f"{name}.safetensors")
            for out in (unbroken, broken)
        ]
        assert saved[0].keys() == saved[1].keys()
        assert all(torch.equal(saved[0][key], saved[1][key]) for key in saved[0])


def test_only_the_value_model_is_trained_during_value_warmup(ppo, files):
    Path("text.jsonl").write_text('{"text": "Tea is poured from a pot."}\n' * 8)
    words = ["value_warmup_steps=3", "train.weight_decay=0.5", "ptx_coef=1", "ptx_data=text.jsonl"]
    ppo(*words, "train.save_steps=1", "train.keep_checkpoints=9")
    first, last = (
        load_file(files / "run" / "checkpoints" / f"step-00000{n}" / "weights.safetensors")
        for n in (1, 3)
    )
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert moved == {name for name in first if name.startswith("value_model.")}


def test_the_ptx_loss_falls(ppo):
    Path("text.jsonl").write_text('{"text": "Tea is poured from a pot."}\n' * 8)
    lines = ppo("ptx_coef=1", "ptx_data=text.jsonl", "max_steps=6")
    assert lines[-1]["loss/ptx"] < 0.9 * lines[0]["loss/ptx"]


def test_updates_stop_above_early_stop_kl(ppo, monkeypatch):
    calls = []
    real = MasterAdamW.step
    monkeypatch.setattr(MasterAdamW, "step", lambda self, lr: (calls.append(lr), real(self, lr)))
    ppo("early_stop_kl=1e-9", "ppo_epochs=3", "max_steps=2", "minibatches=1", "lr=1e-2")
    assert len(calls) == 2 * 2  # the second shows that the first went too far


def test_samples_are_logged(ppo, files, capsys):
    ppo("sample_steps=2", "max_steps=3")
    rows = [json.loads(line) for line in (files / "run" / "samples.jsonl").read_text().splitlines()]
    assert sorted({row["step"] for row in rows}) == [1, 2, 3]
    assert rows[0].keys() == {
        "step",
        "prompt",
        "response",
        "score",
        "kl",
        "tokens",
        "weights_version",
    }
    assert "samples of step 2:" in capsys.readouterr().err


def test_samples_are_of_different_prompts(ppo, files):
    ppo("advantage=grpo", "samples_per_prompt=4", "max_steps=1")
    rows = [json.loads(line) for line in (files / "run" / "samples.jsonl").read_text().splitlines()]
    assert len({row["prompt"] for row in rows}) == len(rows) == 4


def test_a_lowered_max_length_is_reported(ppo, files, capsys):
    line = "data.max_length: 512, the model's positions\n"
    ppo("max_steps=1", "data.eval=prompts.jsonl")
    assert capsys.readouterr().err.count(line) == 1
    assert cli.main(["evaluate", "run"]) == 0
    assert capsys.readouterr().err.count(line) == 1


def test_the_progress_line_has_score_and_kl(ppo, capsys):
    (line,) = ppo("max_steps=1")
    [shown] = [one for one in capsys.readouterr().err.splitlines() if one.startswith("step 1/1")]
    score, kl = (f"{line[f'objective/{name}']:.4f}" for name in ("scores", "kl"))
    assert shown.startswith(f"step 1/1  score {score}  kl {kl}  left ")


def test_held_out_prompts_get_the_same_samples_each_time(ppo):
    lines = ppo("data.eval=prompts.jsonl", "train.eval_steps=1", "lr=1e-9", "max_steps=2")
    evaluated = [line for line in lines if "eval/score" in line]
    assert len(evaluated) == 3
    assert len({line["eval/score"] for line in evaluated}) == 1
    assert evaluated[0]["eval/kl"] == 0


def test_compat_trl_does_not_change_the_held_out_kl(ppo):
    ppo("max_steps=1", out="other")
    words = ["model.reference=other", "data.eval=prompts.jsonl", "lr=1e-9", "max_steps=1"]
    ended = "sampling.stop=[e,a,o]"  # letters, for a random model hardly draws its end token
    plain, trl = (ppo(*words, ended, f"compat={c}", out=c)[0] for c in ("none", "trl"))
    assert plain["eval/eos_fraction"] > 0
    assert trl["eval/kl"] == pytest.approx(plain["eval/kl"])


def test_the_result_is_a_plain_model_without_the_value_head(ppo, files):
    from transformers import AutoModelForCausalLM

    ppo("max_steps=1")
    _, report = AutoModelForCausalLM.from_pretrained(
        files / "run" / "model", output_loading_info=True
    )
    assert not report["unexpected_keys"]
    assert not report["missing_keys"]


def test_a_run_can_start_from_another_run(ppo, files):
    ppo("max_steps=1", out="one")
    ppo("max_steps=1", f"model={files / 'one'}", out="two")
    assert (files / "two" / "model" / "config.json").is_file()


@pytest.mark.parametrize("judge", [pytest.param("some", marks=pytest.mark.slow), "equal"])
def test_responses_without_signal_skip_only_the_backward_pass(judge, ppo, monkeypatch):
    words = ["advantage=grpo", "samples_per_prompt=2", "kl_coef=0", "max_steps=4", "minibatches=1"]
    words += [f"reward.function=judge.py:{judge}", "train.micro_batch_tokens=1"]
    passes = []
    real = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: (passes.append(1), real(self)))
    skipped = ppo(*words, out="skipped")
    fewer = len(passes)
    monkeypatch.setattr(
        "rlhf_cli.stages.ppo.experience.has_signal", lambda score, *_: [True] * len(score)
    )
    whole = ppo(*words, out="whole")
    if judge == "some":  # two responses to each prompt, half of which teach nothing
        assert [line["objective/teaching"] for line in skipped] == [0.5] * 4
        assert fewer == (len(passes) - fewer) / 2
    else:
        assert fewer == len(passes) - fewer
    require_equal(whole, skipped)


def test_equal_scores_get_a_warning(ppo, capsys):
    for advantage in ("gae", "grpo"):
        words = ["samples_per_prompt=2", f"advantage={advantage}"]
        lines = ppo("reward.function=judge.py:equal", *words, out=advantage)
        assert all(math.isfinite(value) for line in lines for value in line.values())
        assert "All scores are 1; there is nothing to learn" in capsys.readouterr().err


def test_an_exploding_kl_stops_the_run_with_one_line(files, capsys):
    words = ["reward.function=judge.py:huge", "lr=1", "train.max_grad_norm=0", "kl_limit=5"]
    assert cli.main(words_of(*words, "max_steps=20")) == 5
    [line] = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error: ")]
    assert "nats from the reference, more than kl_limit=5" in line


def test_evaluate_equals_the_evaluation_of_the_run(ppo, files, sft_run, capsys):
    words = [f"model={sft_run}", "data.eval=prompts.jsonl", "max_steps=2", "lr=1e-2"]
    last = [line for line in ppo(*words) if "eval/score" in line][-1]
    capsys.readouterr()
    assert cli.main(["evaluate", "run", "output=found.json", "precision=fp32"]) == 0
    results = json.loads((files / "found.json").read_text())["results"]
    found = {row["metric"]: row["value"] for row in results}
    assert found.keys() == {"score", "kl", "response_length", "eos_fraction"}
    for name, value in found.items():
        assert value == pytest.approx(last[f"eval/{name}"], abs=1e-4)


def test_a_run_with_cuda_graphs_is_evaluated_on_the_cpu(ppo, files, sft_run):
    ppo(f"model={sft_run}", "data.eval=prompts.jsonl", "max_steps=1", "rollout_logprobs=reuse")
    config = files / "run" / "config.yaml"
    assert config.read_text().count("cuda_graphs: false") == 1
    config.write_text(config.read_text().replace("cuda_graphs: false", "cuda_graphs: true"))
    assert cli.main(["evaluate", "run"]) == 0


@pytest.mark.parametrize(
    ("words", "most"), [((), 1e-5), (("train.precision=bf16", "adapter=lora"), 0.05)]
)
def test_recorded_steps_use_the_weights_of_each_rollout(words, most, ppo, monkeypatch):
    """Old weights would show as a mismatch of the log-probs."""
    for module in (engine, setup):
        monkeypatch.setattr(module, "capture", tape.record)
        monkeypatch.setattr(module, "require_cuda", lambda sampling, device: None)
    graphs = ("sampling.cuda_graphs=true", "rollout_logprobs=reuse")
    lines = ppo(*words, *graphs, "lr=1e-2", "temperature=1")
    assert lines[-1]["policy/approx_kl"] > 1e-3
    assert all(line["rollout/mismatch"] < most for line in lines)


def test_samples_of_a_run_without_a_checkpoint_are_removed(ppo, files):
    (files / "once.py").write_text(
        "from pathlib import Path\n"
        "def score(prompts, responses, **columns):\n"
        "    begun = Path('begun').exists() and not Path('mended').exists()\n"
        "    Path('begun').touch()\n"
        "    return [1 / (not begun) for _ in responses]\n"
    )
    words = words_of("reward.function=once.py:score", "max_steps=2")
    assert cli.main(words) == 3  # in the second rollout
    (files / "mended").touch()
    assert cli.main(words) == 0
    rows = (files / "run" / "samples.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1] * 4 + [2] * 4


def test_the_held_out_kl_is_over_sampled_tokens_only(ppo):
    """The trailing pad of `compat=trl` has a value and no KL."""
    words = ["data.eval=prompts.jsonl", "max_new_tokens=64", "temperature=3", "lr=1e-2", *ONCE]
    words.append("advantage=reinforce_pp")
    plain, trl = (ppo(*words, f"compat={kind}", out=kind)[-1] for kind in ("none", "trl"))
    assert plain["eval/eos_fraction"] > 0
    assert trl["eval/kl"] == pytest.approx(plain["eval/kl"], abs=1e-5)
