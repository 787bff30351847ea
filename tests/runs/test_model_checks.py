"""What is found from a model's config and file headers before anything is loaded."""

import json
from pathlib import Path

import pytest

from rlhf_cli import cli
from rlhf_cli.config.args import parse
from rlhf_cli.registry import COMMANDS
from rlhf_cli.resolve import resolve
from rlhf_cli.runs.model_checks import max_positions, read_weight_shapes

CONFIG = {"model_type": "gpt2", "n_positions": 64, "architectures": ["GPT2LMHeadModel"]}
WEIGHTS = {
    "wte.weight": [100, 8],
    "wpe.weight": [64, 8],
    "h.0.attn.c_attn.weight": [8, 24],
    "h.0.attn.c_attn.bias": [24],
    "h.0.ln_1.weight": [8],
    "h.0.mlp.c_fc.weight": [8, 32],
}
LORA = {"r": 4, "lora_alpha": 32, "lora_dropout": 0.0, "peft_type": "LORA"}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model("small")
    Path("adapter").mkdir()
    config = {**LORA, "base_model_name_or_path": str(tmp_path / "small")}
    Path("adapter/adapter_config.json").write_text(json.dumps(config))


def model(name, config=CONFIG, weights=WEIGHTS):
    """A folder with a config and the header of a weight file, and no weights."""
    Path(name).mkdir()
    Path(name, "config.json").write_text(json.dumps(config))
    header = json.dumps({k: {"dtype": "F32", "shape": v} for k, v in weights.items()}).encode()
    Path(name, "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


def told(capsys, *words):
    code = cli.main(["sft", "data=tiny", *words, "--cfg"])
    lines = capsys.readouterr().err.splitlines()
    assert code == (2 if lines else 0)
    return [line.removeprefix("error: ").removesuffix("  (command line)") for line in lines]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["adapter=lora", "adapter.targets=[c_atn]"], "adapter.targets: got c_atn; no linear layer "
         "has that name, the model has c_attn, c_fc. Try adapter.targets=[c_attn]"),
        (["adapter=lora", "adapter.targets=[wte]"], "adapter.targets: got wte; no linear layer has "
         "that name, the model has c_attn, c_fc"),
        (["adapter=lora", "adapter.modules_to_save=[nrm]"], "adapter.modules_to_save: got nrm; no "
         "layer has that name, the model has attn, c_attn, c_fc, h, ln_1, mlp, wpe, wte"),
        (["model.freeze=[wte,hh.0]"], "model.freeze: got hh.0; no layer has that name, the model "
         "has attn, c_attn, c_fc, h, ln_1, mlp, wpe, wte. Try model.freeze=[wte,h.0]"),
        (["data.max_length=65"], "data.max_length: got 65, but the model has 64 positions. "
         "Try data.max_length=64"),
    ],
)  # fmt: skip
def test_a_mistake_that_needs_the_model_is_one_line(words, line, capsys):
    assert told(capsys, "model=small", *words) == [line]


@pytest.mark.parametrize(
    "words",
    [
        ["adapter=lora", "adapter.targets=[c_attn,mlp.c_fc]"],
        ["adapter=lora", "adapter.targets=[transformer.h.0.mlp.c_fc]"],
        ["adapter=lora", "adapter.targets=[lm_head]"],  # tied: not in the file
        ["adapter=lora", "adapter.modules_to_save=[wte,score]"],
        ["model.freeze=[transformer.h.0,wte]"],
        ["data.max_length=64"],
    ],
)
def test_what_the_model_has_is_accepted(words, capsys):
    assert told(capsys, "model=small", *words) == []


def test_all_mistakes_are_told_at_once(capsys):
    words = ["adapter=lora", "adapter.targets=[a,c_fcc]", "max_length=99", "train.lrr=1"]
    assert [line.partition(":")[0] for line in told(capsys, "model=small", *words)] == [
        "train.lrr",
        "adapter.targets",
        "adapter.targets",
        "data.max_length",
    ]


def test_the_shipped_model_has_no_weights_and_is_known_too(capsys):
    words = ("model=tiny", "adapter=lora")
    assert told(capsys, *words, "adapter.targets=[q_proj,model.layers.1.mlp.up_proj]") == []
    [line] = told(capsys, *words, "adapter.targets=[q_prj]")
    assert line.endswith("down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj. "
                         "Try adapter.targets=[q_proj]")  # fmt: skip


@pytest.mark.parametrize(
    "weights",
    [{}, {"layers.0.mlp.experts.3.w1.weight": [4, 4], "layers.0.q_proj.weight": [4, 4]}],
)
def test_names_are_not_judged_where_the_file_does_not_tell_them(weights, capsys):
    """Without weights, and with experts, which have other names once they are loaded."""
    model("other", weights=weights)
    assert told(capsys, "model=other", "adapter=lora", "adapter.targets=[gate_up_proj]") == []


def test_a_damaged_file_is_left_to_what_loads_it(capsys):
    Path("small/model.safetensors").write_bytes(b"\xff" * 9)
    assert told(capsys, "model=small", "adapter=lora", "adapter.targets=[x]") == []


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["adapter=lora"], ["adapter.rank: got 16, but the adapter in {} has 4 and is to be "
         "trained on. Try adapter.rank=4, or adapter.start=stack for a new one on top"]),
        (["adapter=dora", "adapter.rank=4", "adapter.targets=[c_fc]"], [
         "adapter.kind: got dora, but the adapter in {} has lora and is to be trained on. "
         "Try adapter.kind=lora, or adapter.start=stack for a new one on top",
         "adapter.targets: given, but the adapter in {} has its layers already. Leave it out, or "
         "add adapter.start=stack for a new one on top"]),
        (["adapter=lora", "adapter.rank=4"], []),
        (["adapter=lora", "adapter.start=stack", "adapter.targets=[c_fc]"], []),
        ([], []),
    ],
)  # fmt: skip
def test_an_adapter_that_is_trained_on_is_compared_with_what_is_asked_for(words, lines, capsys):
    where = Path("adapter").resolve()
    assert told(capsys, "model=adapter", *words) == [line.format(where) for line in lines]


def test_what_an_adapter_does_not_say_of_itself_is_left_to_what_loads_it(capsys):
    Path("adapter/adapter_config.json").write_text("{}")
    assert told(capsys, "model=adapter", "adapter=lora", "adapter.rank=4") == []


# Positions


def longest(*words):
    found = resolve(COMMANDS["sft"], parse(COMMANDS["sft"], ["data=tiny", *words]))
    return found.config.data.max_length, found.tree["data"]["max_length"]


@pytest.mark.parametrize("name", ["small", "adapter"])
def test_the_default_length_is_lowered_to_the_positions_of_the_model(name):
    """In what runs, not in what is written down: the same command continues the run."""
    assert longest(f"model={name}") == (64, 1024)
    assert longest(f"model={name}", "max_length=32") == (32, 32)


def test_a_model_with_more_positions_keeps_the_default():
    assert longest("model=llama_8m") == (1024, 1024)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"max_position_embeddings": 8}, 8),
        ({"model_type": "gemma3", "text_config": {"max_position_embeddings": 8}}, 8),
        ({"model_type": "xlnet", "max_position_embeddings": -1}, None),
        ({"model_type": "roberta", "max_position_embeddings": 8}, None),
        ({"max_position_embeddings": "8"}, None),
        ({}, None),
    ],
)
def test_positions_are_those_that_the_config_says_plainly(config, found):
    assert max_positions(config) == found


def test_names_are_those_without_what_wrappers_add():
    model("wrapped", weights={"_orig_mod.module.h.0.base_layer.weight": [2, 2]})
    assert read_weight_shapes(Path("wrapped")) == {"h.0.weight": [2, 2]}
