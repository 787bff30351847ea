"""Continuing a run with another number of processes, and checkpoints of format 3."""

import json
import random

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rlhf_cli.distributed.ranks import SINGLE_PROCESS
from rlhf_cli.errors import CheckpointError
from rlhf_cli.runs.digest import hash_file
from rlhf_cli.train import checkpoint_index, resume
from rlhf_cli.train.checkpoint import latest_checkpoint, load_checkpoint
from rlhf_cli.train.checkpoint_index import read_index
from rlhf_cli.train.metrics import Meter
from rlhf_cli.train.resume import check_resumable, find_checkpoint, meter_of_rank
from rlhf_cli.train.rng_state import read_rng_state, restore_rng_state, state_of_rank
from tests.thread_ranks import on_ranks
from tests.train.shards import (
    even_cuts,
    layouts_of,
    load,
    make_optimizer,
    save,
    values,
    whole_layouts,
)
from tests.train.test_stored_moments import KIND

FINGERPRINT = {
    "micro_batch_tokens": 64,
    "processes": 4,
    "shard": "full",
    "replicas": 1,
    "context_parallel": 1,
    "offload": "none",
    "threads": 3,
    "compute": "bf16",
    "data": "a",
}


def full(count):
    return [layouts_of(even_cuts(count), rank) for rank in range(count)]


def draw():
    """The next numbers of all generators."""
    return torch.rand(3).tolist(), random.random(), np.random.rand()


def states_of(*seeds):
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        found.append(read_rng_state())
    return found


@pytest.fixture(autouse=True)
def _same_generators_afterwards():
    before = read_rng_state()
    yield
    restore_rng_state(before)


def test_each_rank_continues_with_its_own_random_states():
    saved = states_of(1, 2)
    for rank, seed in ((0, 1), (1, 2)):
        restore_rng_state(state_of_rank(saved, rank))
        found = draw()
        states_of(seed)
        assert found == draw()


def test_new_ranks_get_states_that_depend_on_the_saved_ones_and_their_number():
    def numbers(saved, rank):
        restore_rng_state(state_of_rank(saved, rank))
        return draw()

    saved = states_of(1, 2)
    found = [numbers(saved, rank) for rank in range(6)]
    assert found == [numbers(states_of(1, 2), rank) for rank in range(6)]
    assert len({str(one) for one in found}) == 6
    assert numbers(states_of(1, 3), 3) != found[3]


def test_random_states_survive_the_checkpoint(tmp_path):
    states_of(11)
    path = save(tmp_path, full(1))
    expected = draw()
    states_of(12)
    load(path, full(1))
    assert draw() == expected


def test_every_rank_has_its_states_in_the_checkpoint(tmp_path):
    path = save(tmp_path, full(4))
    assert len(json.loads((path / "state.json").read_text())["rng"]) == 4
    with safe_open(path / "rng.safetensors", "pt") as file:
        assert {*file.keys()} >= {f"{rank}/cpu" for rank in range(4)}


def meters(*sums):
    return [{name: [float(total), 2.0] for name, total in one.items()} for one in sums]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_metrics_since_the_last_logged_line_are_those_of_all_saved_ranks(count):
    saved = meters({"loss": 3, "lr": 1}, {"loss": 5}, {"loss": 7, "kl": 1})

    def of_rank(ranks):
        meter = Meter(ranks)
        meter.load_state_dict(meter_of_rank(saved, ranks))
        return meter.read()

    assert on_ranks(count, of_rank) == [{"loss": 2.5, "lr": 0.5, "kl": 0.5}] * count


def checkpoint_with(tmp_path, monkeypatch, stored):
    """A checkpoint's path, of which only the fingerprint is read."""
    monkeypatch.setattr(resume, "read_state", lambda path: {"machinery": stored})
    monkeypatch.setattr(torch, "set_num_threads", lambda count: used.append(count))
    used: list[int] = []
    return tmp_path, used


def test_the_same_processes_keep_micro_batches_and_threads(tmp_path, monkeypatch, capfd):
    path, used = checkpoint_with(tmp_path, monkeypatch, FINGERPRINT)
    now = {**FINGERPRINT, "micro_batch_tokens": 512, "threads": 1}
    assert check_resumable(path, now) == FINGERPRINT
    assert used == [3]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"processes": 2}, "4 processes (launch.shard=full) on 2 processes (launch.shard=full)"),
        (
            {"processes": 1, "shard": "none"},
            "4 processes (launch.shard=full) on 1 process: ",
        ),
        (
            {"shard": "hybrid", "replicas": 2},
            "on 4 processes (launch.shard=hybrid, launch.replicas=2)",
        ),
        ({"context_parallel": 2}, "on 4 processes (launch.shard=full, launch.context_parallel=2)"),
    ],
)
def test_other_processes_have_their_own_micro_batches(tmp_path, monkeypatch, capfd, change, said):
    path, used = checkpoint_with(tmp_path, monkeypatch, FINGERPRINT)
    now = {**FINGERPRINT, "micro_batch_tokens": 512, "threads": 1, **change}
    assert check_resumable(path, now) == now
    assert used == []
    shown = capfd.readouterr().err
    assert shown.startswith("continuing a run of 4 processes (launch.shard=full) on ")
    assert said in shown
    assert shown.count("\n") == 1


def test_a_checkpoint_before_sharded_training_had_none(tmp_path, monkeypatch, capfd):
    old = {n: v for n, v in FINGERPRINT.items() if n not in resume.LAUNCH} | {"processes": 2}
    now = {**FINGERPRINT, "shard": "none", "processes": 2}
    path, _ = checkpoint_with(tmp_path, monkeypatch, old)
    assert check_resumable(path, now) == now
    assert capfd.readouterr().err == ""
    check_resumable(path, {**now, "processes": 1})
    assert "continuing a run of 2 processes on 1 process" in capfd.readouterr().err


def test_anything_else_is_refused_as_before(tmp_path, monkeypatch):
    path, _ = checkpoint_with(tmp_path, monkeypatch, FINGERPRINT)
    with pytest.raises(CheckpointError, match="compute: bf16 -> fp32"):
        check_resumable(path, {**FINGERPRINT, "processes": 2, "compute": "fp32"})


def test_all_ranks_continue_from_the_checkpoint_that_rank_0_sees(tmp_path, monkeypatch):
    """Another machine's list of a shared folder may be old."""
    path = save(tmp_path, full(1), step=4)
    assert find_checkpoint(tmp_path, "auto", SINGLE_PROCESS) == path
    assert find_checkpoint(tmp_path / "none", "auto", SINGLE_PROCESS) is None
    assert find_checkpoint(tmp_path, "~", SINGLE_PROCESS).is_absolute()
    asked = []
    monkeypatch.setattr(
        resume, "latest_checkpoint", lambda out: asked.append(out) or latest_checkpoint(out)
    )
    assert on_ranks(3, lambda ranks: find_checkpoint(tmp_path, "auto", ranks)) == [path] * 3
    assert len(asked) == 1


def write_format_3(folder, optimizer, ranks=2):
    """A checkpoint as versions before sharded training wrote it."""
    folder.mkdir(parents=True)
    states = states_of(*range(ranks))
    parts = {
        "weights.safetensors": optimizer.masters,
        "optimizer.safetensors": optimizer.moments(),
        "rng.safetensors": {
            f"{rank}/{name}": tensor
            for rank, of_rank in enumerate(states)
            for name, tensor in of_rank.tensors.items()
        },
        "stage.safetensors": {"reference": torch.arange(4.0)},
    }
    for name, part in parts.items():
        save_file({key: value.contiguous() for key, value in part.items()}, folder / name)
    document = {
        "format": 3,
        "step": 2,
        "meter": [{}] * ranks,
        "rng": [of_rank.values for of_rank in states],
        "sha256": {name: hash_file(folder / name) for name in parts},
    }
    (folder / "state.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


class Headers:
    """A safetensors file whose tensors cannot be read."""

    def __init__(self, *args):
        self.opened = safe_open(*args)
        self.keys, self.get_slice = self.opened.keys, self.opened.get_slice

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def test_the_index_of_format_3_is_made_of_headers_alone(tmp_path, monkeypatch):
    path = write_format_3(tmp_path / "step-000002", make_optimizer(whole_layouts(), KIND, steps=2))
    monkeypatch.setattr(checkpoint_index, "safe_open", Headers)
    index = read_index(path)
    dtypes = set()
    for group, entries in index.tensors.items():
        stored = load_file(path / f"{group}.safetensors")
        assert entries.keys() == stored.keys()
        for name, entry in entries.items():
            [piece] = entry.pieces
            assert piece.dtype == str(stored[name].dtype).removeprefix("torch.")
            dtypes.add(piece.dtype)
    assert {"float32", "uint8"} <= dtypes


@pytest.mark.parametrize("kind", ["adamw", KIND])
@pytest.mark.parametrize("count", [1, 3])
def test_checkpoints_of_format_3_are_continued(tmp_path, kind, count):
    old = make_optimizer(whole_layouts(), kind, steps=2)
    path = write_format_3(tmp_path / "checkpoints" / "step-000002", old)
    every = full(count)

    def of_rank(ranks):
        optimizer = make_optimizer(every[ranks.rank], kind, seed=7)
        stage = {"reference": torch.zeros(4)}
        state = load_checkpoint(path, optimizer, stage, ranks)
        assert stage["reference"].tolist() == [0, 1, 2, 3]
        assert state["step"] == 2
        return optimizer

    loaded = on_ranks(count, of_rank)
    weights = torch.cat([one.masters["embedding"] for one in loaded])
    assert torch.equal(weights, old.masters["embedding"])
    if count == 1:
        found = values(loaded[0])
        assert found.keys() == values(old).keys()
        assert all(torch.equal(found[name], value) for name, value in values(old).items())
    assert {p.name for p in path.iterdir()} == {
        *(f"{group}.safetensors" for group in ("weights", "optimizer", "stage", "rng")),
        "state.json",
    }


def test_a_damaged_checkpoint_of_format_3_is_refused(tmp_path):
    old = make_optimizer(whole_layouts(), steps=2)
    path = write_format_3(tmp_path / "checkpoints" / "step-000002", old)
    (path / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors"):
        load_checkpoint(path, make_optimizer(whole_layouts()), {})
