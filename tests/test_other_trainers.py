"""Other trainers' names for our keys: what is suggested for them, and that it is accepted."""

import re
from pathlib import Path

import pytest

from rlhf_cli import cli
from rlhf_cli.config.check import check_override
from rlhf_cli.config.other_trainers import LIBRARIES, OTHER_NAMES
from rlhf_cli.config.schema import groups, key_type, options
from rlhf_cli.registry import COMMANDS

TINY = ("model=tiny", "data=tiny")
VALUES = ("1", "0.1", "512", "true", "tiny", "cosine", "[q_proj]", "text", "sigmoid", "train",
          "sdpa", "tiny/judge.py:score", "http://localhost/score", "template.jinja")  # fmt: skip
"""One of these is a value that each key takes."""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("template.jinja").touch()
    Path("rows.jsonl").touch()


def told(capsys, *words):
    assert cli.main([*words, "--cfg"]) == 2
    lines = capsys.readouterr().err.splitlines()
    return [line.removeprefix("error: ").removesuffix("  (command line)") for line in lines]


def variants(entry):
    """Every form of the settings of an entry, a list of alternatives for each placeholder."""
    if isinstance(entry.settings, dict):
        return [[settings] for settings in entry.settings.values()]
    return [[re.sub(r"{\w*}", lambda _, value=value: value, entry.settings) for value in VALUES]]


def accepted(settings):
    words = re.split(r" (?=[\w.]+=)", settings)
    return any(
        all(check_override(command, word) is None for word in words)
        for command in COMMANDS.values()
    )


def test_the_table_is_large_and_names_each_key_once():
    assert len(OTHER_NAMES) == sum(map(len, LIBRARIES.values())) >= 150


@pytest.mark.parametrize("name", [name for name, entry in OTHER_NAMES.items() if entry.settings])
def test_what_is_suggested_for_a_name_is_accepted(name):
    for alternatives in variants(OTHER_NAMES[name]):
        assert any(map(accepted, alternatives)), alternatives


@pytest.mark.parametrize(
    "name", [name for name, entry in OTHER_NAMES.items() if not entry.settings]
)
def test_a_name_of_nothing_here_has_a_sentence(name):
    assert OTHER_NAMES[name].note.endswith(".")


def test_no_training_command_has_a_foreign_name_as_its_own():
    own = {
        key
        for command in COMMANDS.values()
        if command.trains
        for key in (*options(command.config), *groups(command.config))
    }
    assert own & {*OTHER_NAMES} == {"data", "data.path"}  # generate has prompts


@pytest.mark.parametrize("entry", OTHER_NAMES.values())
def test_a_sentence_names_keys_that_exist(entry):
    for key in re.findall(r"\b(?:train|data|model|log)\.\w+", entry.note):
        assert key_type(COMMANDS["sft"].config, key) is not None


@pytest.mark.parametrize(
    ("command", "words", "line"),
    [
        ("sft", ("learning_rate=1e-4",), "learning_rate: no such key in sft; did you mean "
         "train.lr? Try train.lr=1e-4"),
        ("sft", ("lora_r=8",), "lora_r: no such key in sft; did you mean adapter.rank? "
         "Try adapter=lora adapter.rank=8"),
        ("sft", ("lora_target_modules=q_proj,v_proj",), "lora_target_modules: no such key in sft; "
         "did you mean adapter.targets? Try adapter=lora adapter.targets=[q_proj,v_proj]"),
        ("sft", ("lora_target=all",), "lora_target: no such key in sft; did you mean "
         "adapter.targets? Try adapter=lora adapter.targets=all-linear"),
        ("sft", ("load_in_4bit=True",), "load_in_4bit: no such key in sft; did you mean quant? "
         "Try quant=nf4"),
        ("sft", ("gradient_accumulation_steps=8",), "gradient_accumulation_steps: no such key in "
         "sft; did you mean train.batch_size? It counts the examples of an optimizer step over all "
         "devices and accumulated micro-batches. See rlhf sft --help"),
        ("sft", ("warmup_ratio=0.1",), "warmup_ratio: no such key in sft; did you mean "
         "train.warmup_steps? It counts optimizer steps, not a share of the run. "
         "See rlhf sft --help"),
        ("sft", ("warmup_ratio=0.1", "max_steps=200"), "warmup_ratio: no such key in sft; did you "
         "mean train.warmup_steps? It counts optimizer steps, not a share of the run. "
         "Try train.warmup_steps=20"),
        ("sft", ("lr_scheduler_type=polynomial",), "lr_scheduler_type: no such key in sft; did you "
         "mean train.schedule, which needs one of cosine, linear, constant, wsd? "
         "Try train.schedule=cosine"),
        ("sft", ("fp16=true",), "fp16: no such key in sft. Compute is bf16 or fp32 "
         "(train.precision); fp16 is not supported. See rlhf sft --help"),
        ("sft", ("num_generations=4",), "num_generations: no such key in sft; did you mean "
         "samples_per_prompt, a key of dpo, ppo, grpo, distill, generate, doctor? "
         "See rlhf sft --help"),
        ("dpo", ("pref_ftx=0.5",), "pref_ftx: no such key in dpo; did you mean loss_weights? "
         "Try loss_type=[sigmoid,sft] loss_weights=[1,0.5]"),
        ("dpo", ("rpo_alpha=x",), "rpo_alpha: no such key in dpo; did you mean loss_weights? "
         "See rlhf dpo --help"),
    ],
)  # fmt: skip
def test_a_foreign_name_is_told_in_one_line(command, words, line, capsys):
    assert told(capsys, command, *TINY, *words) == [line]


def test_the_batch_of_a_device_and_its_accumulation_are_multiplied(capsys):
    words = ("per_device_train_batch_size=4", "gradient_accumulation_steps=8")
    lines = told(capsys, "sft", *TINY, *words)
    assert [line.rpartition(" Try ")[2] for line in lines] == ["train.batch_size=32"] * 2


def test_they_are_in_a_recipe_too(capsys):
    Path("r.yaml").write_text("micro_batch_size: 2\ngradient_accumulation_steps: 3\n")
    lines = told(capsys, "sft", *TINY, "config=r.yaml")
    assert [line.rpartition(" Try ")[2] for line in lines] == [
        "train.batch_size=6  (r.yaml:1)",
        "train.batch_size=6  (r.yaml:2)",
    ]


# What follows from the same mistake


def test_data_under_another_name_are_not_missing_too(capsys):
    assert told(capsys, "sft", "model=tiny", "dataset_path=rows.jsonl") == [
        "dataset_path: no such key in sft; did you mean data.path? Try data.path=rows.jsonl"
    ]


def test_a_model_and_data_under_other_names_are_not_taken_for_none(capsys):
    lines = told(capsys, "sft", "base_model=tiny", "datasets=rows.jsonl")
    assert [line.partition(":")[0] for line in lines] == ["base_model", "datasets"]


def test_a_key_of_the_adapter_beside_a_foreign_one_is_not_refused_too(capsys):
    lines = told(capsys, "sft", *TINY, "lora_r=8", "adapter.alpha=16")
    assert [line.partition(":")[0] for line in lines] == ["lora_r"]


def test_a_recipe_s_foreign_names_hide_what_follows_from_them(capsys):
    Path("r.yaml").write_text("base_model: tiny\ndatasets: [rows.jsonl]\n")
    lines = told(capsys, "sft", "config=r.yaml")
    assert [line.partition(":")[0] for line in lines] == ["base_model", "datasets"]


# Suggestions pass the check themselves


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("warmup_step=0.1", "warmup_step: no such key in sft; did you mean train.warmup_steps, "
         "which needs a whole number >= 0? Try train.warmup_steps=0"),
        ("shedule=linaer", "shedule: no such key in sft; did you mean train.schedule, which needs "
         "one of cosine, linear, constant, wsd? Try train.schedule=linear"),
        ("xyzzy=1", "xyzzy: no such key in sft. See rlhf sft --help"),
        ("foo.path=x", "foo.path: no such key in sft. See rlhf sft --help"),
        ("gradient_steps=4", "gradient_steps: no such key in sft. See rlhf sft --help"),
        ("lr=-0,1", "train.lr: got -0,1; need one value. For a run of each value add -m"),
    ],
)  # fmt: skip
def test_what_the_check_would_refuse_is_not_suggested(word, line, capsys):
    assert told(capsys, "sft", *TINY, word) == [line]
