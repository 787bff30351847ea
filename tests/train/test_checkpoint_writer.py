"""Writing of checkpoints by several ranks, with threads and without."""

import json
import threading

import pytest
import torch
from torch import nn

from rlhf_cli.distributed.shards import ShardLayout
from rlhf_cli.errors import CheckpointError, RankFailed
from rlhf_cli.runs.folder import list_checkpoints
from rlhf_cli.train import checkpoint_files
from rlhf_cli.train.checkpoint import load_checkpoint
from rlhf_cli.train.checkpoint_writer import Checkpoint, CheckpointWriter
from rlhf_cli.train.config import TrainConfig
from rlhf_cli.train.optim import MasterAdamW
from tests.thread_ranks import on_ranks
from tests.train.shards import even_cuts, layouts_of, make_optimizer, rows, save, take_step


def full(count):
    return [layouts_of(even_cuts(count), rank) for rank in range(count)]


def content(optimizer, step, **state):
    return Checkpoint(step, optimizer, {"machinery": {}, "meter": [{}], **state})


def steps_in(out):
    return [path.name for path in list_checkpoints(out)]


def fill_disk_of(monkeypatch, part):
    """No file whose name has this part can be written any more."""
    real = checkpoint_files.save_file

    def full_disk(tensors, path):
        if part in path.name:
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoint_files, "save_file", full_disk)


class Gate:
    """Lets files be written only once it is opened; can be told which."""

    def __init__(self, monkeypatch, part=""):
        self.opened, self.reached = threading.Event(), threading.Event()
        real = checkpoint_files.save_file

        def waiting(tensors, path):
            if part in path.name:
                self.reached.set()
                assert self.opened.wait(30)
            real(tensors, path)

        monkeypatch.setattr(checkpoint_files, "save_file", waiting)


def test_a_full_disk_of_one_rank_fails_all_and_names_it(tmp_path, monkeypatch):
    save(tmp_path, full(4), step=1)
    fill_disk_of(monkeypatch, "00002-of-00004")
    pattern = r"rank 2 on \S+: no space left on device\); step-000001 still stands"
    with pytest.raises(CheckpointError, match=pattern):
        save(tmp_path, full(4), step=2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


def test_the_other_ranks_say_that_a_rank_failed(tmp_path, monkeypatch):
    fill_disk_of(monkeypatch, "00001-of-00003")
    every, raised = full(3), {}

    def of_rank(ranks):
        optimizer = make_optimizer(every[ranks.rank])
        try:
            CheckpointWriter(tmp_path, 2, ranks).save(content(optimizer, 1))
        except (CheckpointError, RankFailed) as error:
            raised[ranks.rank] = type(error)

    on_ranks(3, of_rank)
    assert raised == {0: CheckpointError, 1: CheckpointError, 2: RankFailed}


def test_files_that_are_not_in_the_shared_folder_are_missed(tmp_path, monkeypatch):
    """As where output_dir is a disk of each machine: rank 0 does not see what rank 1 wrote."""
    real = checkpoint_files.hash_file

    def on_another_disk(path):
        found = real(path)
        if "00001-of" in path.name:
            path.unlink()
        return found

    monkeypatch.setattr(checkpoint_files, "hash_file", on_another_disk)
    with pytest.raises(CheckpointError, match="file system that all machines share"):
        save(tmp_path, full(2))
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_what_a_killed_run_left_is_removed_by_the_next_save(tmp_path):
    left = tmp_path / "checkpoints" / "step-000007.tmp"
    left.mkdir(parents=True)
    (left / "weights-00000-of-00004.safetensors").write_bytes(b"half")
    save(tmp_path, full(1), step=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


def test_a_save_in_the_background_is_byte_for_byte_the_other(tmp_path, monkeypatch):
    """Also where training has gone on before the thread writes."""
    torch.manual_seed(5)
    recent = [1.0]
    for background in (False, True):
        out = tmp_path / str(background)
        gate = Gate(monkeypatch)
        if not background:
            gate.opened.set()
        optimizer = make_optimizer(full(1)[0], steps=2)
        writer = CheckpointWriter(out, 2, background=background)
        writer.save(content(optimizer, 2, recent=recent))
        take_step(optimizer, 9)
        recent.append(2.0)
        gate.opened.set()
        writer.wait()
        recent.pop()
    one, two = (tmp_path / str(b) / "checkpoints" / "step-000002" for b in (False, True))
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name
    assert json.loads((two / "state.json").read_text())["recent"] == [1.0]


def test_it_is_complete_when_all_ranks_have_written(tmp_path, monkeypatch):
    gate, every = Gate(monkeypatch, "weights-00002"), full(4)

    def of_rank(ranks):
        writer = CheckpointWriter(tmp_path, 2, ranks, background=True)
        writer.save(content(make_optimizer(every[ranks.rank], steps=1), 1))
        gate.reached.wait(30)
        seen = []
        for _ in range(3):
            writer.check()
            seen.append(steps_in(tmp_path))
        ranks.any(False)
        gate.opened.set()
        while writer._pending is not None:
            writer.check()
        return seen, steps_in(tmp_path)

    for seen, after in on_ranks(4, of_rank):
        assert seen == [[], [], []]
        assert after == ["step-000001"]


def test_a_save_waits_for_the_one_before(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    optimizer = make_optimizer(full(1)[0], steps=1)
    writer = CheckpointWriter(tmp_path, 2, background=True)
    writer.save(content(optimizer, 1))
    assert gate.reached.wait(30)
    writer.check()
    assert steps_in(tmp_path) == []
    gate.opened.set()
    writer.save(content(optimizer, 2))
    assert "step-000001" in steps_in(tmp_path)
    writer.wait()
    assert steps_in(tmp_path) == ["step-000001", "step-000002"]


def test_an_error_of_the_thread_is_raised_after_the_next_step(tmp_path, monkeypatch):
    every = full(2)
    save(tmp_path, every, step=1)
    fill_disk_of(monkeypatch, "weights-00001")

    def of_rank(ranks):
        optimizer = make_optimizer(every[ranks.rank])
        writer = CheckpointWriter(tmp_path, 2, ranks, background=True)
        writer.save(content(optimizer, 2))
        for step in range(1000):
            take_step(optimizer, step)
            writer.check()
        pytest.fail("no error within 1000 steps")

    with pytest.raises(CheckpointError, match=r"rank 1 on .*no space left.*step-000001 still"):
        on_ranks(2, of_rank)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


def test_the_best_checkpoint_is_kept(tmp_path):
    optimizer = make_optimizer(full(1)[0])
    writer = CheckpointWriter(tmp_path, 1)
    for step in (1, 2, 3):
        writer.save(content(optimizer, step), keep_step=1)
    assert steps_in(tmp_path) == ["step-000001", "step-000003"]


@pytest.mark.parametrize("background", [False, True])
def test_tensors_of_the_stage_are_saved_by_rows_too(tmp_path, background):
    """A sharded tensor and a whole one, as a reference that follows the policy has them."""
    whole = {"sharded": torch.randn(6, 3), "norm": torch.randn(4).bfloat16()}
    every = full(3)

    def tensors_of(rank, count):
        size = 6 // count
        layout = ShardLayout((6, 3), rank * size, size)
        return {"sharded": rows(whole["sharded"], layout), "norm": whole["norm"]}, layout

    def write(ranks):
        tensors, layout = tensors_of(ranks.rank, 3)
        optimizer = make_optimizer(every[ranks.rank])
        writer = CheckpointWriter(tmp_path, 2, ranks, background=background)
        writer.save(Checkpoint(1, optimizer, {"meter": [{}]}, tensors, {"sharded": layout}))
        writer.wait()

    def read(ranks):
        tensors, layout = tensors_of(ranks.rank, 2)
        empty = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        optimizer = make_optimizer(full(2)[ranks.rank])
        path = tmp_path / "checkpoints" / "step-000001"
        load_checkpoint(path, optimizer, empty, ranks, layouts={"sharded": layout})
        return all(torch.equal(empty[name], tensor) for name, tensor in tensors.items())

    on_ranks(3, write)
    assert on_ranks(2, read) == [True, True]


def test_layouts_of_an_optimizer_are_whole_and_written_where_it_is_told():
    module = nn.Linear(3, 2)
    for writes in (True, False):
        optimizer = MasterAdamW(module, TrainConfig(), torch.float32, writes=writes)
        assert optimizer.layouts == {
            "weight": ShardLayout((2, 3), 0, 2, writes),
            "bias": ShardLayout((2,), 0, 2, writes),
        }
