"""What holds for every run of reward, dpo and bco: first step, cuts, resume, results."""

import json
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BertConfig

from rlhf_cli import cli
from rlhf_cli.models.wrapper import ModelWrapper
from rlhf_cli.resources import cache_folder, shipped_folder
from rlhf_cli.stages.dpo.config import LossName
from rlhf_cli.train.metrics import read_metrics
from tests.helpers import last_of_each, rows_of, without_machine

DATA = shipped_folder("recipes") / "tiny" / "data"
STEPS = 10
RANKED = [
    {"prompt": "Say a", "responses": ["a", "b b", "c c c"], "scores": [2, 1, 1]},
    {"prompt": "Say b", "responses": ["a a", "b"], "scores": [0, 1]},
    {"prompt": "Say c", "responses": ["a", "b", "c", "d d"], "scores": [0, 1, 3, 2]},
]
CASES = {
    "reward": ["reward", "center_coefficient=0.01", "lr=1e-4"],
    "dpo": ["dpo", "loss_type=[sigmoid,sft]"],
    "dpo, sorted": ["dpo", "loss_type=aot"],
    "dpo, ld and wpo": ["dpo", "loss_type=ipo", "ld_alpha=0.5", "wpo=true"],
    "kto": ["dpo", "loss_type=kto"],
    "bco": ["bco"],
    "bco, prompts": ["bco", "udm.embedding_model=reference", "delta=balanced"],
}


def words_of(out, stage, *words):
    command = [
        stage, "model=tiny", "data=tiny", "data.eval=none", "train.precision=fp32", "lr=1e-3",
        "batch_size=8", f"max_steps={STEPS}", f"output_dir={out}", *words,
    ]  # fmt: skip
    return last_of_each(*command)


def run(out, stage, *words):
    assert cli.main(words_of(out, stage, *words)) == 0
    return read_metrics(out / "metrics.jsonl")


def require_equal(expected, got):
    for name, most in (("loss", 1e-5), ("grad_norm", 1e-4)):
        for a, b in zip(expected, got, strict=True):
            assert b[name] == pytest.approx(a[name], rel=most, abs=most)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Each case in one micro-batch, run when it is first asked for."""
    made = {}

    def ask(case):
        if case not in made:
            out = tmp_path_factory.mktemp("whole") / "run"
            made[case] = run(out, *CASES[case])
        return made[case]

    return ask


OTHERS = ("dpo, ld and wpo", "kto")
"""Cut as dpo is."""


@pytest.mark.parametrize(
    "case",
    [c if c not in OTHERS else pytest.param(c, marks=pytest.mark.slow) for c in CASES],
)
def test_how_a_step_is_cut_does_not_matter(case, whole, tmp_path):
    cut = run(tmp_path / "run", *CASES[case], "train.micro_batch_tokens=100")
    require_equal(whole(case), cut)
    for name in ("delta", "kl", "rewards/margins", "accuracy"):
        assert [line.get(name) for line in cut] == [
            pytest.approx(line[name], abs=1e-4) if name in line else None for line in whole(case)
        ]


@pytest.mark.parametrize("case", ["reward", "dpo, sorted", "bco"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_matter(case, side, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelWrapper, "padding_side", side)
    attention = "sdpa" if side == "left" else "eager"
    require_equal(whole(case), run(tmp_path / "run", *CASES[case], f"model.attention={attention}"))


@pytest.mark.parametrize(
    "case",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in ("reward", "dpo, sorted")), "bco"],
)
def test_two_processes_are_one(case, whole, tmp_path):
    words = words_of(tmp_path / "run", *CASES[case], "launch.processes=2")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-m", "rlhf_cli", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    require_equal(whole(case), read_metrics(tmp_path / "run" / "metrics.jsonl"))


RESUMED = {
    "reward, adapter": ["reward", "adapter=lora", "adapter.rank=2"],
    "dpo, stored": ["dpo"],
    "dpo, copy": ["dpo", "model.reference=copy"],
    "dpo, adapter": ["dpo", "adapter=lora", "adapter.rank=2"],
    "bco, running": ["bco"],
    "bco, ema": ["bco", "delta=ema", "delta_decay=0.5"],
    "bco, prompts": ["bco", "udm.embedding_model=reference"],
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_run_that_goes_on_is_the_unbroken_one(case, tmp_path):
    """Also where the cache, with the stored reference, was emptied in between."""
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    words = [*RESUMED[case], "max_steps=6", "train.save_steps=3"]
    run(unbroken, *words)
    shutil.copytree(unbroken, broken)
    for gone in ("model", "checkpoints/step-000006"):
        shutil.rmtree(broken / gone)
    manifest = broken / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"complete"', '"running"'))
    shutil.rmtree(cache_folder() / "reference", ignore_errors=True)
    run(broken, *words)
    lines = [without_machine(read_metrics(out / "metrics.jsonl")) for out in (unbroken, broken)]
    assert lines[0] == lines[1]
    saved = [next((out / "model").glob("*.safetensors")) for out in (unbroken, broken)]
    first, second = (load_file(file) for file in saved)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("words", "loss"),
    [
        (["dpo"], math.log(2)),
        (["dpo", "loss_type=ipo", "beta=0.2"], 1 / (4 * 0.2**2)),
        (["dpo", "loss_type=kto"], 0.5),
        (["bco"], math.log(2)),
        (["bco", "delta=balanced"], math.log(2)),
    ],
)
def test_the_first_loss_where_policy_and_reference_agree(words, loss, tmp_path):
    first = run(tmp_path / "run", *words, "max_steps=1")[0]
    assert first["loss"] == pytest.approx(loss, abs=1e-6)


EXTRA = {
    "robust": ["label_smoothing=0.1"],
    "exo_pair": ["label_smoothing=0.001"],
    "simpo": ["beta=2"],
}


@pytest.mark.parametrize("name", LossName.__args__)
def test_every_loss_falls_on_rows_that_come_again(name, tmp_path):
    words = [f"loss_type={name}", *EXTRA.get(name, []), "max_steps=8", "data.split=train[:8]"]
    lines = run(tmp_path / "run", "dpo", *words, "data.shuffle=false")
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all(math.isfinite(value) for line in lines for value in line.values())


def test_metrics_have_the_names_of_the_field(tmp_path):
    (line,) = run(tmp_path / "run", "dpo", "max_steps=1")
    sides = ("chosen", "rejected")
    names = [f"{of}/{side}" for of in ("rewards", "logps") for side in sides]
    assert {"rewards/accuracies", "rewards/margins", "entropy", "loss", *names} <= line.keys()


def test_a_ranking_trains_with_all_its_pairs(tmp_path):
    file = tmp_path / "ranked.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in RANKED))
    words = ["reward", f"data={file}", "batch_size=3"]
    learned = run(tmp_path / "learned", *words, "lr=1e-3")
    assert learned[-1]["accuracy"] == 1.0
    assert learned[-1]["loss"] < 0.5 * learned[0]["loss"]
    # Slower here: as fast as above, ten steps make a rounding error a thousand times larger.
    cut = [
        run(tmp_path / f"{most}", *words, "lr=1e-4", f"train.micro_batch_tokens={most}")
        for most in (4096, 1)
    ]
    require_equal(*cut)


def score_in_transformers(model, rows):
    with torch.no_grad():
        each = rows.tokens.split(rows.lengths.tolist())
        return torch.cat([model(input_ids=row[None]).logits[0] for row in each])


def test_a_reward_model_gives_the_same_score_in_transformers_and_peft(tmp_path):
    from peft import AutoPeftModelForSequenceClassification

    run(tmp_path / "sft", "sft", "max_steps=1")
    rows = rows_of([5, 60, 70, 1], [9, 80, 1])
    run(tmp_path / "full", "reward", f"model={tmp_path / 'sft'}", "max_steps=2")
    full = AutoModelForSequenceClassification.from_pretrained(tmp_path / "full" / "model")
    adapter = ["adapter=lora", "adapter.rank=2", "lr=1e-2", "max_steps=2"]
    run(tmp_path / "lora", "reward", f"model={tmp_path / 'sft'}", *adapter)
    lora = AutoPeftModelForSequenceClassification.from_pretrained(
        tmp_path / "lora" / "model", num_labels=1
    )
    for name, plain in (("full", full), ("lora", lora)):
        expected = our_scores(tmp_path / name, tmp_path, rows)
        found = score_in_transformers(plain.eval(), rows)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("start", [[], ["adapter=lora", "adapter.start=stack"]])
def test_a_reward_model_starts_from_the_adapter_of_a_language_model(tmp_path, start):
    sft, out = tmp_path / "sft", tmp_path / "reward"
    run(sft, "sft", "adapter=lora", "max_steps=2")
    run(out, "reward", f"model={sft}", *start, "max_steps=2")
    below = out / "model" / "stacked_0" if start else out / "model"
    before, after = (
        load_file(folder / "adapter_model.safetensors") for folder in (sft / "model", below)
    )
    kept = [torch.equal(after[name], before[name]) for name in before]
    assert all(kept) if start else not all(kept)
    rows = rows_of([5, 60, 70, 1], [9, 80, 1])
    assert our_scores(out, tmp_path, rows).isfinite().all()


def our_scores(path, out, rows):
    """On the CPU; computed wherever the model is."""
    from rlhf_cli.context import create_context
    from rlhf_cli.models.config import LoadConfig, ModelConfig
    from rlhf_cli.models.load import LoadInputs, load_frozen
    from rlhf_cli.models.reward_model import RewardModel
    from rlhf_cli.models.tokenizer import load_tokenizer

    cfg = LoadConfig(model=ModelConfig(path=str(path)))
    ctx = create_context("fp32", 0, out)
    model = load_frozen(RewardModel, cfg, LoadInputs(load_tokenizer(cfg.model), ctx))
    with torch.no_grad():
        return model(rows.to(ctx.device)).cpu()


def test_an_encoder_is_trained_and_loads_with_the_same_scores(tmp_path):
    tokenizer = shipped_folder("recipes") / "tiny" / "model"
    shape = BertConfig(
        vocab_size=1024, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, num_labels=1,
    )  # fmt: skip
    folder = tmp_path / "bert"
    AutoModelForSequenceClassification.from_config(shape).save_pretrained(folder)
    for file in tokenizer.glob("*token*"):
        shutil.copy(file, folder)
    lines = run(tmp_path / "run", "reward", f"model={folder}", "data.split=train[:8]", "lr=1e-2")
    assert lines[-1]["loss"] < lines[0]["loss"]
    rows = rows_of([5, 60, 70, 1], [9, 80, 1])
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model").eval()
    expected = our_scores(tmp_path / "run", tmp_path, rows)
    torch.testing.assert_close(score_in_transformers(plain, rows), expected, atol=1e-6, rtol=1e-5)


def test_a_reward_model_goes_on_from_another(tmp_path):
    words = ["data.split=train[:8]", "data.shuffle=false", "lr=1e-2", "train.schedule=constant"]
    first = run(tmp_path / "one", "reward", *words)
    second = run(tmp_path / "two", "reward", f"model={tmp_path / 'one'}", *words)
    assert max(second[0]["loss"], first[-1]["loss"]) < 0.3 * first[0]["loss"]


def test_a_damaged_reference_is_computed_anew(tmp_path, capsys):
    shutil.rmtree(cache_folder() / "reference", ignore_errors=True)
    whole = run(tmp_path / "one", "dpo", "max_steps=2")
    (file,) = (cache_folder() / "reference").glob("*/reference.npy")
    file.write_bytes(file.read_bytes()[:-8] + b"\0" * 8)
    capsys.readouterr()
    again = run(tmp_path / "two", "dpo", "max_steps=2")
    assert "damaged" in capsys.readouterr().err
    assert without_machine(again) == without_machine(whole)
