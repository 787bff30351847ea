"""Checkpoints of sharded runs: written by some ranks, read by others."""

import tempfile
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch.testing import assert_close

from rlhf_cli.train.checkpoint import load_weights
from rlhf_cli.train.checkpoint_files import CheckpointReader
from rlhf_cli.train.checkpoint_index import read_index
from tests.thread_ranks import on_ranks
from tests.train.shards import (
    SHARDED,
    even_cuts,
    layouts_of,
    load,
    make_optimizer,
    rows,
    save,
    take_step,
    values,
    whole_layouts,
)


def full(count):
    return [layouts_of(even_cuts(count), rank) for rank in range(count)]


def hybrid(count, replicas=2):
    each = count // replicas
    cuts = even_cuts(each)
    return [layouts_of(cuts, rank % each, writes=rank < each) for rank in range(count)]


def data_parallel(count):
    return [whole_layouts(writes=rank == 0) for rank in range(count)]


SHARDINGS = {
    "one": data_parallel(1),
    "two": data_parallel(2),
    "full of 2": full(2),
    "full of 3": full(3),
    "full of 4": full(4),
    "hybrid of 4": hybrid(4),
}


def require_rows_of(unbroken, loaded):
    """Each rank has its rows of the unbroken optimizer's masters and moments, bit for bit."""
    for optimizer in loaded:
        found = values(optimizer)
        for key, value in values(unbroken).items():
            layout = optimizer.layouts[key.partition("/")[0]]
            expected = value if key.endswith("/step") else rows(value, layout)
            if layout.rows:
                assert torch.equal(found.pop(key), expected), key
        assert not any(value.numel() for key, value in found.items())


@pytest.mark.parametrize(("saved", "continued"), list(product(SHARDINGS, repeat=2)))
def test_any_sharding_continues_any_other(tmp_path, saved, continued):
    path = save(tmp_path, SHARDINGS[saved])
    loaded = load(path, SHARDINGS[continued])
    require_rows_of(make_optimizer(whole_layouts(), steps=2), loaded)


def test_the_trajectory_is_that_of_the_unbroken_run(tmp_path):
    """AdamW works on single values; vector and scalar code round a last bit differently."""
    loaded = load(save(tmp_path, full(4)), full(3))
    unbroken = make_optimizer(whole_layouts(), steps=2)
    for seed in (50, 51):
        for optimizer in (*loaded, unbroken):
            take_step(optimizer, seed)
    for optimizer in loaded:
        for name, master in optimizer.masters.items():
            assert_close(
                master.flatten(),
                rows(unbroken.masters[name], optimizer.layouts[name]).flatten(),
                rtol=1e-6,
                atol=1e-7,
            )


@st.composite
def divisions(draw):
    """Any division of every parameter's rows among one to five ranks, empty parts included."""
    count = draw(st.integers(1, 5))
    cuts = {}
    for name, (total, *_) in SHARDED.items():
        inner = draw(st.lists(st.integers(0, total), min_size=count - 1, max_size=count - 1))
        cuts[name] = [0, *sorted(inner), total]
    return [layouts_of(cuts, rank) for rank in range(count)]


@settings(max_examples=25, deadline=None)
@given(divisions(), divisions())
def test_any_division_is_read_by_any_other(saved, continued):
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(save(Path(folder), saved), continued)
    require_rows_of(make_optimizer(whole_layouts(), steps=2), loaded)


def test_each_rank_writes_its_rows_and_the_index_names_them(tmp_path):
    path = save(tmp_path, full(4))
    names = {entry.name for entry in path.iterdir()}
    groups = {
        f"{g}-{k:05d}-of-00004.safetensors" for g in ("weights", "optimizer") for k in range(4)
    }
    assert names == {*groups, "index.json", "state.json", "rng.safetensors"}
    index = read_index(path)
    assert index.sha256.keys() == names - {"index.json"}
    embedding = index.tensors["weights"]["embedding"]
    assert embedding.shape == (40, 150)
    assert [(piece.start, piece.rows) for piece in embedding.pieces] == [
        (0, 10),
        (10, 10),
        (20, 10),
        (30, 10),
    ]
    with safe_open(path / embedding.pieces[2].file, "pt") as file:
        assert file.get_slice("embedding").get_shape() == [10, 150]


def test_what_is_not_sharded_is_written_once(tmp_path):
    for every in (data_parallel(1), data_parallel(3)):
        path = save(tmp_path / str(len(every)), every)
        names = {"weights.safetensors", "optimizer.safetensors", "rng.safetensors"}
        assert {entry.name for entry in path.iterdir()} == {*names, "index.json", "state.json"}
    assert {p.name for p in save(tmp_path / "hybrid", hybrid(4)).glob("w*")} == {
        "weights-00000-of-00002.safetensors",
        "weights-00001-of-00002.safetensors",
    }


def test_a_rank_reads_only_the_rows_it_needs(tmp_path, monkeypatch):
    path = save(tmp_path, full(4))
    read = []
    real = CheckpointReader.of_piece
    monkeypatch.setattr(
        CheckpointReader,
        "of_piece",
        lambda self, piece, name, start, count: (
            read.append((name, piece.file, count)) or real(self, piece, name, start, count)
        ),
    )
    load_weights(tmp_path, 2, layouts_of(even_cuts(3), 1))
    assert path.is_dir()
    assert [one for one in read if one[0] == "embedding"] == [
        ("embedding", "weights-00001-of-00004.safetensors", 6),
        ("embedding", "weights-00002-of-00004.safetensors", 8),
    ]


def test_the_weights_of_a_step_are_whole_or_a_ranks_rows(tmp_path):
    save(tmp_path, full(4))
    expected = make_optimizer(whole_layouts(), steps=2).masters
    found = load_weights(tmp_path, 2)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    every = full(2)
    parts = on_ranks(2, lambda ranks: load_weights(tmp_path, 2, every[ranks.rank], ranks))
    assert torch.equal(torch.cat([p["embedding"] for p in parts]), expected["embedding"])
