"""Weight files that are written weight by weight are those of `save_pretrained`."""

import errno
import json
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.errors import RankFailed
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


class Pair(Ranks):
    """One of two ranks; what the other one says when they agree is given."""

    def __init__(self, rank, others=()):
        super().__init__(rank, 2)
        vars(self).update(others=list(others), said=[])

    def any(self, flag):
        self.said.append(flag)
        return flag or (self.others.pop(0) if self.others else False)


def recorded(names, values):
    """Gathers whole values, and writes down their names."""

    def gather(name):
        names.append(name)
        return values[name]

    return gather


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
    asked = {0: [], 1: []}
    for rank, names in asked.items():
        model = load(saved(name), tokenizer)
        values = model.state_dict()

        folder = tmp_path / str(rank)
        save_weights(model, folder, BF16, recorded(names, values), Pair(rank))
        assert folder.exists() == (rank == 0)
    assert asked[0] == asked[1]
    assert set(Counter(asked[0]).values()) == {1}


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("name", ["llama-tied", "mixtral"])
@pytest.mark.parametrize(
    ("function", "at", "failure"),
    [("_write_header", 0, full_disk), ("_write_header", 1, full_disk), ("_values", 7, full_memory)],
)
def test_a_process_that_cannot_write_gathers_on_and_then_fails(
    saved, tokenizer, tmp_path, monkeypatch, name, function, at, failure
):
    """The other processes wait for it at each weight."""
    monkeypatch.setattr(weight_files, "SHARD", "20kB")
    model = load(saved(name), tokenizer)
    values = model.state_dict()
    asked = {0: [], 1: []}
    save_weights(model, tmp_path / "other", BF16, recorded(asked[1], values), Pair(1))
    real, calls = getattr(weight_files, function), []

    def fails(*args):
        calls.append(len(asked[0]))
        return failure() if len(calls) > at else real(*args)

    monkeypatch.setattr(weight_files, function, fails)
    ranks = Pair(0)
    with pytest.raises((OSError, torch.OutOfMemoryError)):
        save_weights(model, tmp_path / "own", BF16, recorded(asked[0], values), ranks)
    assert len(calls) == at + 1
    assert ranks.said == [False, True]
    assert asked[0] == asked[1]


def test_what_fails_to_be_gathered_fails_at_once(saved, tokenizer, tmp_path):
    """The processes are not at the same weight any more: another call would not be answered."""
    model = load(saved("llama"), tokenizer)
    ranks = Pair(0)
    with pytest.raises(RankFailed, match="gone"):
        save_weights(model, tmp_path / "own", BF16, gone, ranks)
    assert ranks.said == [False]


def gone(_):
    raise RankFailed("rank 1 is gone")


@pytest.mark.parametrize("rank", [0, 1])
def test_no_weight_is_gathered_where_a_process_cannot_plan(
    saved, tokenizer, tmp_path, monkeypatch, rank
):
    model, asked = load(saved("llama"), tokenizer), []
    gather = recorded(asked, model.state_dict())
    with pytest.raises(RankFailed, match="another rank failed"):
        save_weights(model, tmp_path / "own", BF16, gather, Pair(rank, others=[True]))
    ranks = Pair(rank)
    monkeypatch.setattr(weight_files.tempfile, "TemporaryDirectory", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_weights(model, tmp_path / "own", BF16, gather, ranks)
    assert ranks.said == [True]
    assert not asked


def test_a_process_fails_where_another_could_not_write(saved, tokenizer, tmp_path):
    model = load(saved("llama"), tokenizer)
    gather = recorded([], model.state_dict())
    with pytest.raises(RankFailed, match="another rank failed"):
        save_weights(model, tmp_path / "own", BF16, gather, Pair(1, others=[False, True]))


def test_values_of_another_shape_are_not_written(saved, tokenizer, tmp_path):
    model = load(saved("llama"), tokenizer)
    with pytest.raises(RuntimeError, match="need \\["):
        save_weights(model, tmp_path / "own", BF16, lambda _: torch.zeros(1))
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
