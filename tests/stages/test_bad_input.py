"""What users get wrong: one clear line, the right exit code, nothing lost."""

import json
import re
import shutil

import pytest
import torch

from rlhf_cli.resources import shipped_folder
from tests.helpers import fill_disk_after_one_checkpoint, last_of_each
from tests.stages.conftest import FAST

GOOD = {"prompt": "Tea?", "completion": " Yes."}


def sft(told, *argv):
    words = ["model=tiny", "output_dir=run", "max_steps=2", *FAST, *argv]
    return told("sft", *last_of_each(*words))


def on_cpus(*values):
    """What is refused where there is no GPU."""
    return pytest.param(*values, marks=pytest.mark.skipif(torch.cuda.is_available(), reason="GPU"))


@pytest.mark.parametrize(
    ("argv", "code", "pattern"),
    [
        (["data=none.jsonl"], 3, r"data.path: got none.jsonl; need a file or folder that exists"),
        (["data=tiny", "btch_size=3"], 2, r"btch_size: .*batch_size"),
        (["data=tiny", "train.lrr=3"], 2, r"train.lrr: .*train.lr"),
        (["data=tiny", "+train.lrr=3"], 2, r"train.lrr: .*train.lr"),
        (["data=tiny", "++train.lrr=3"], 2, r"train.lrr: .*train.lr"),
        (["data=tiny", "lr=fast"], 2, r"train.lr: got fast; need a number > 0"),
        (["data=tiny", "lr=-1"], 2, r"train.lr: got -1; need a number > 0"),
        (["data=tiny", "lr=nan"], 2, r"train.lr: got nan; need"),
        (["data=tiny", "train.schedule=cosin"], 2, r"train.schedule: got cosin.*cosine"),
        (["data=tiny", "model.tokenizer_vocab_size=99", "model.tokenizer=tiny"], 2, r"one of the"),
        (["data=tiny", "train.warmup_steps=9"], 2, r"train.warmup_steps.*max_steps"),
        on_cpus(["data=tiny", "train.optimizer=paged_adamw_8bit"], 2, "Try .*=adamw_8bit"),
        (["data=tiny", "model.attention=flash_attention_2"], 2, "flash_attn is not installed"),
        on_cpus(["data=tiny", "model.attention=flex_attention"], 1, "CUDA alone, and this runs on"),
        (["data=tiny", "model=runs/nothing/here"], 2, r"model.path: got runs/nothing/here"),
        ([], 2, r"data.path: none given"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_setting(told, argv, code, pattern):
    got, error = sft(told, *argv)
    assert (got, bool(re.search(pattern, error))) == (code, True), error
    assert not shipped_folder("recipes").parent.joinpath("run").exists()


def test_all_errors_at_once(told):
    code, error = sft(told, "data=tiny", "lr=-1", "train.schedul=cosine", "seed=x")
    assert code == 2
    assert len(error.splitlines()) == 3


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        (json.dumps(GOOD) + '\n{"prompt": "x", ', r"rows.jsonl:2: broken JSON"),
        (
            json.dumps({**GOOD, "completion": None}),
            r"rows.jsonl:1: null: completion; found prompt",
        ),
        (json.dumps({**GOOD, "prompt": 7}), r"rows.jsonl:1: prompt: got 7; need text"),
        ("[1, 2]", r"rows.jsonl:1: got a list of 2; need a JSON object"),
        (json.dumps({"question": "x"}), r"rows.jsonl:1: no known columns in \['question'\]"),
        (json.dumps({**GOOD, "completion": "  "}), "empty response"),
        (json.dumps({"prompt": "x", "chosen": "y", "rejected": "z"}), "sft takes"),
    ],
)
def test_a_wrong_file(told, tmp_path, content, pattern):
    (tmp_path / "rows.jsonl").write_text(content)
    code, error = sft(told, "data=rows.jsonl")
    assert code == 3
    assert re.search(pattern, error), error


def test_a_folder_without_data(told, tmp_path):
    (tmp_path / "empty").mkdir()
    code, error = sft(told, "data=empty")
    assert (code, "the folder is empty" in error) == (3, True), error


def test_a_tolerated_number_of_bad_rows_trains(told, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(GOOD) + "\nnot json\n")
    assert sft(told, "data=rows.jsonl", "data.max_bad_rows=1") == (0, "")


def test_a_row_longer_than_the_context(told, rows):
    data = rows({"prompt": "x" * 9000, "completion": " Yes."})
    code, error = sft(told, f"data={data}", "max_length=2000")
    assert code == 2
    assert "data.max_length: got 2000, but the model has 512 positions" in error
    assert "Try data.max_length=512" in error


def test_a_model_folder_without_tokenizer(told, sft_run, tmp_path):
    shutil.copytree(sft_run / "model", tmp_path / "bare")
    for file in (tmp_path / "bare").glob("tokenizer*"):
        file.unlink()
    code, error = told("sft", "model=bare", "data=tiny")
    assert (code, "bare has no tokenizer" in error) == (1, True), error


def test_a_model_folder_with_a_pickle_only(told, sft_run, tmp_path):
    shutil.copytree(sft_run / "model", tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").rename(tmp_path / "old" / "pytorch_model.bin")
    code, error = told("sft", "model=old", "data=tiny")
    assert (code, "pickle (pytorch_model.bin)" in error) == (1, True), error


def test_a_model_folder_without_weights(told, sft_run, tmp_path):
    shutil.copytree(sft_run / "model", tmp_path / "shape")
    (tmp_path / "shape" / "model.safetensors").unlink()
    code, error = told("sft", "model=shape", "data=tiny")
    assert (code, "Try model.init=scratch" in error) == (1, True), error


def test_a_model_folder_without_some_of_its_files(told, sft_run, tmp_path):
    shutil.copytree(sft_run / "model", tmp_path / "half")
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "half" / "model.safetensors.index.json").write_text(json.dumps(index))
    code, error = told("sft", "model=half", "data=tiny")
    assert (code, "1 of 2 files of weights are missing, model-2" in error) == (1, True), error


def test_a_model_file_that_was_cut_off(told, sft_run, tmp_path):
    shutil.copytree(sft_run / "model", tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:50_000])
    code, error = told("sft", "model=cut", "data=tiny")
    assert (code, error.startswith("model.path: cannot load")) == (1, True), error


def test_a_checkpoint_that_is_packed_already(told, sft_run, tmp_path):
    shutil.copytree(sft_run / "model", tmp_path / "gptq")
    file = tmp_path / "gptq" / "config.json"
    packed = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    file.write_text(json.dumps(json.loads(file.read_text()) | packed))
    code, error = told("sft", "model=gptq", "data=tiny", "adapter=lora")
    assert (code, "quantized already (gptq)" in error) == (1, True), error


def test_code_that_a_model_brings_runs_with_consent_alone(told, sft_run, tmp_path):
    shutil.copytree(sft_run / "model", tmp_path / "own")
    file = tmp_path / "own" / "config.json"
    code = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | code))
    (tmp_path / "own" / "own.py").write_text("raise SystemExit('it ran')")
    code, error = told("sft", "model=own", "data=tiny")
    assert (code, "try model.trust_remote_code=true" in error) == (1, True), error


def test_a_folder_that_is_no_model(told, tmp_path):
    (tmp_path / "notes").mkdir()
    code, error = told("sft", "model=notes", "data=tiny")
    assert (code, "has no config.json" in error) == (1, True), error


def test_a_hub_id_that_cannot_be_reached(told):
    code, error = told("sft", "model=nobody/nothing-here", "data=tiny")
    assert code == 1
    assert "cannot load nobody/nothing-here" in error
    assert "HF_HUB_OFFLINE" in error


@pytest.mark.parametrize("shape", ["{model_type: nonsense}", "{model_type: llama, hidden_size: x}"])
def test_an_architecture_that_is_none(told, shape):
    setting = [f"model.architecture={shape}", "model.tokenizer=tiny", "data.format=text"]
    code, error = told("pretrain", "model.init=scratch", "data=tiny", *setting)
    assert code == 1
    assert error.startswith("model.architecture: cannot load random weights in the shape of")
    assert "hub id" not in error
    assert len(error) < 500


def test_rows_with_tokens_that_the_model_does_not_embed(told, sft_run, tmp_path):
    shutil.copytree(sft_run / "model", tmp_path / "small")
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    (tmp_path / "small" / "model.safetensors").unlink()
    config["vocab_size"] = 1000
    (tmp_path / "small" / "config.json").write_text(json.dumps(config))
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = AutoConfig.from_pretrained(tmp_path / "small")
    AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path / "small")
    code, error = told("sft", "model=small", "data=tiny")
    assert code == 3
    assert re.match(r"\S+:\d+: token id 10\d\d has no embedding in the model, which has", error)


def test_the_folder_of_another_run(told, sft_run):
    code, error = told("sft", "model=tiny", "data=tiny", f"output_dir={sft_run}", "seed=5")
    assert code == 2
    assert "seed: 0 -> 5" in error
    code, error = told("pretrain", "model=tiny", "data=tiny", f"output_dir={sft_run}")
    assert (code, "holds a run of sft" in error) == (2, True), error


def test_a_full_disk_at_checkpoint_time_loses_nothing(told, monkeypatch, tmp_path):
    argv = ("data=tiny", "train.save_steps=1")
    with monkeypatch.context() as patch:
        fill_disk_after_one_checkpoint(patch)
        code, error = sft(told, *argv)
    assert (code, "step-000001 still stands" in error) == (1, True), error
    assert sft(told, *argv) == (0, "")


def test_a_non_finite_loss_has_its_own_exit_code(told):
    code, error = sft(told, "data=tiny", "lr=1e30", "max_steps=9", "train.max_grad_norm=0")
    assert code == 5
    assert re.search(r"step \d: .*stopped before the optimizer step", error)
    assert "sft_train.jsonl:" in error


def test_prompts_that_are_not_there(told, tmp_path):
    code, error = told("generate", "model=tiny", "prompts=gone.jsonl")
    assert (code, "prompts: got gone.jsonl" in error) == (3, True), error
    (tmp_path / "empty.txt").write_text("\n")
    code, error = told("generate", "model=tiny", "prompts=empty.txt")
    assert (code, "no prompt in it" in error) == (3, True), error
    assert told("generate", "model=tiny")[0] == 2
