"""Weight files that are written weight by weight are those of `save_pretrained`."""

import json
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rlhf_cli.models import weight_files
from rlhf_cli.models.base_model import BaseOptions, load_base_model
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.stored_origin import InMemory
from rlhf_cli.models.weight_files import WeightFile, save_weights, write_safetensors
from tests.models.architectures import ARCHITECTURES

BF16, FP32 = torch.bfloat16, torch.float32


def files_of(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


def load(folder, tokenizer):
    return load_base_model(ModelConfig(path=str(folder)), str(folder), tokenizer, BaseOptions())


def test_a_file_is_that_of_safetensors_byte_for_byte(tmp_path):
    tensors = {
        "b": torch.randn(3, 5).bfloat16(),
        "a": torch.randn(7),
        "scalar": torch.tensor(3),
        "none": torch.empty(0, 4),
        "é": torch.tensor([[True, False]]),
        "half": torch.randn(2, 2).half(),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "int": torch.arange(4, dtype=torch.int32),
        "double": torch.randn(2, dtype=torch.float64),
        "a2": torch.randn(4, 3).T,
    }
    origins = {name: InMemory(tuple(t.shape), t.dtype, t) for name, t in tensors.items()}
    with (tmp_path / "own").open("wb") as handle:
        write_safetensors(handle, WeightFile("own", origins, {"format": "pt"}))
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(plain, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "own").read_bytes() == (tmp_path / "theirs").read_bytes()


def tensors_of(folder):
    files = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
    return {name: tensor for file in files for name, tensor in file.items()}


# transformers keeps the experts of a layer in one file, however large, since they share memory
@pytest.mark.parametrize(
    ("name", "size"),
    [
        *((name, "4GB") for name in ARCHITECTURES),
        *((name, "60kB") for name in ARCHITECTURES if name != "mixtral"),
    ],
)
def test_a_folder_is_that_of_save_pretrained(saved, tokenizer, tmp_path, monkeypatch, name, size):
    monkeypatch.setattr(weight_files, "SHARD", size)
    model = load(saved(name), tokenizer)
    save_weights(model, tmp_path / "own", BF16)
    model = load(saved(name), tokenizer).to(BF16)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=size)
    own, theirs = files_of(tmp_path / "own"), files_of(tmp_path / "theirs")
    assert own.keys() == theirs.keys()
    for file, content in theirs.items():
        assert own[file] == content, file
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "own", dtype=FP32)
    pairs = zip(again.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(one, other.float()) for one, other in pairs)


def test_experts_are_divided_among_files_too(saved, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "SHARD", "60kB")
    model = load(saved("mixtral"), tokenizer)
    save_weights(model, tmp_path / "own", FP32)
    index = json.loads((tmp_path / "own" / "model.safetensors.index.json").read_text())
    numbers = Counter(index["weight_map"].values())
    for file, number in numbers.items():
        assert number == 1 or (tmp_path / "own" / file).stat().st_size < 70_000
    model.save_pretrained(tmp_path / "theirs")
    own, theirs = tensors_of(tmp_path / "own"), tensors_of(tmp_path / "theirs")
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("name", ["llama-tied", "qwen3_moe"])
def test_every_process_gathers_the_same_weights_in_the_same_order_and_once(
    saved, tokenizer, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(weight_files, "SHARD", "60kB")
    asked = {True: [], False: []}
    for is_main, names in asked.items():
        model = load(saved(name), tokenizer)
        values = model.state_dict()

        def gather(full, names=names, values=values):
            names.append(full)
            return values[full]

        folder = tmp_path / str(is_main)
        save_weights(model, folder, BF16, gather, is_main=is_main)
        assert folder.exists() == is_main
    assert asked[True] == asked[False]
    assert set(Counter(asked[True]).values()) == {1}


def test_values_of_another_shape_are_not_written(saved, tokenizer, tmp_path):
    model = load(saved("llama"), tokenizer)
    with pytest.raises(RuntimeError, match="need \\["):
        save_weights(model, tmp_path / "own", BF16, lambda _: torch.zeros(1))
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
