"""Checkpoints that cannot be continued from: each with one line that says why, and what to do."""

import json
import re

import pytest

from rlhf_cli.distributed.shards import ShardLayout
from rlhf_cli.errors import CheckpointError
from rlhf_cli.train.checkpoint import load_checkpoint, load_weights, read_state
from rlhf_cli.train.checkpoint_index import read_index
from rlhf_cli.train.optim import MasterAdamW
from tests.thread_ranks import on_ranks
from tests.train.shards import even_cuts, layouts_of, load, make_optimizer, save
from tests.train.test_loop import optimizer as llama_optimizer


def full(count):
    return [layouts_of(even_cuts(count), rank) for rank in range(count)]


@pytest.fixture
def path(tmp_path):
    return save(tmp_path, full(4))


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def refused(path, *, ranks=2):
    with pytest.raises(CheckpointError) as raised:
        load(path, full(ranks))
    text = str(raised.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert raised.value.exit_code == 1
    assert re.search(r"(Remove this folder|Use the model)", text)
    return text


def test_another_model_names_the_first_parameter_and_counts(path):
    with pytest.raises(CheckpointError, match=r"is of another model: 24 parameters") as raised:
        load_checkpoint(path, llama_optimizer(), {})
    text = str(raised.value)
    assert "it has 4, this run 20" in text
    assert "first bias: [5] there, none here" in text


def test_another_shape_is_told(path):
    other = make_optimizer(full(1)[0])
    other.layouts["matrix"] = ShardLayout((9, 7), 0, 9)
    pattern = r"1 parameter of .*first matrix: \[13, 7\] there, \[9, 7\] here"
    with pytest.raises(CheckpointError, match=pattern):
        load_checkpoint(path, other, {})


def test_a_half_written_index(path):
    text = (path / "index.json").read_text()
    (path / "index.json").write_text(text[: len(text) // 2])
    assert "index.json is half-written or damaged" in refused(path)


def test_no_index(path):
    (path / "index.json").unlink()
    assert "no such file or directory: index.json" in refused(path)


@pytest.mark.parametrize("name", ["weights-00002-of-00004", "optimizer-00000-of-00004", "rng"])
def test_a_missing_file_of_a_rank(path, name):
    (path / f"{name}.safetensors").unlink()
    assert f"{name}.safetensors is missing" in refused(path)


@pytest.mark.parametrize("name", ["weights-00003-of-00004.safetensors", "state.json"])
def test_a_damaged_file_is_found_on_all_ranks(path, name):
    content = bytearray((path / name).read_bytes())
    content[-20] ^= 1
    (path / name).write_bytes(content)
    assert f"{name} is damaged" in refused(path)

    def of_rank(ranks):
        with pytest.raises(CheckpointError, match="is damaged"):
            load_checkpoint(path, make_optimizer(full(3)[ranks.rank]), {}, ranks)

    on_ranks(3, of_rank)


@pytest.mark.parametrize("found", [2, 5, "4", None])
def test_an_unknown_format(path, found):
    for name in ("index.json", "state.json"):
        change(path / name, format=found)
    text = refused(path)
    assert f"format {found}, and this version reads 3 and 4" in text
    assert "the version of rlhf that wrote it" in text
    with pytest.raises(CheckpointError, match="this version reads"):
        read_state(path)


@pytest.mark.parametrize("kept", [slice(1, None), slice(0, 3), slice(0, 4, 2)])
def test_an_index_that_lacks_rows(path, kept):
    index = json.loads((path / "index.json").read_text())
    embedding = index["weights"]["embedding"]
    embedding["pieces"] = embedding["pieces"][kept]
    (path / "index.json").write_text(json.dumps(index))
    assert "index.json is damaged" in refused(path)


def test_an_index_without_a_files_hash(path):
    hashes = read_index(path).sha256
    del hashes["weights-00001-of-00004.safetensors"]
    change(path / "index.json", sha256=hashes)
    assert "index.json has no hash of weights-00001-of-00004.safetensors" in refused(path)


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"format": 4}', ""])
def test_an_index_that_is_something_else(path, text):
    (path / "index.json").write_text(text)
    assert refused(path)


def test_the_best_weights_cannot_be_taken_from_a_damaged_checkpoint(path, tmp_path):
    (path / "weights-00000-of-00004.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_weights(tmp_path, 2)


def test_the_parameters_of_an_optimizer_must_be_those_of_the_rows(path):
    """`load` checks names and shapes itself: it is also called with other tensors."""
    optimizer = make_optimizer(full(1)[0])
    assert isinstance(optimizer, MasterAdamW)
    with pytest.raises(KeyError, match="parameters differ"):
        optimizer.load({}, [])
    wrong = {name: master[..., None] for name, master in optimizer.masters.items()}
    with pytest.raises(ValueError, match="not"):
        optimizer.load(wrong, [])
