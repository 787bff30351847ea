"""What machines of one run must have in common, compared before anything is loaded."""

import json
import threading

import pytest

from rlhf_cli.config.rank_env import RankEnv
from rlhf_cli.distributed.process_group import host_store
from rlhf_cli.errors import ConfigError, RankFailed
from rlhf_cli.launch import same_start
from rlhf_cli.launch.same_start import compare_starts, find_differences, hash_files, start_facts
from rlhf_cli.launch.worker import Task

HASH, OTHER = "0" * 64, "1" * 64
FIRST = {
    "machine": "node-a",
    "command": "sft lr=1e-4",
    "python": "3.11.7",
    "torch": "2.13.0",
    "output_dir": "the run folder",
    "data.path": HASH,
}


def test_equal_machines_have_no_difference():
    assert find_differences([FIRST, {}, {**FIRST, "machine": "node-b"}, {}]) == []


@pytest.mark.parametrize(
    ("change", "words", "advice"),
    [
        ({"torch": "2.11.0"}, "torch: 2.11.0, not 2.13.0", "Install the same versions"),
        ({"command": "sft lr=1"}, "command: sft lr=1, not sft lr=1e-4", "the same command"),
        ({"data.path": OTHER}, "data.path: other content", "Give files that all machines share"),
        ({"data.path": "no such file"}, "data.path: no such file", "Give files"),
        ({"output_dir": "no such folder"}, "output_dir: no such folder", "output_dir that all"),
    ],
)
def test_a_difference_is_told_in_one_line_with_rank_machine_and_advice(change, words, advice):
    [line] = find_differences([FIRST, {}, {**FIRST, "machine": "node-b", **change}])
    assert line.startswith("rank 2 on node-b does not start as rank 0 on node-a: ")
    assert words in line
    assert advice in line


def test_files_are_told_apart_by_name_size_and_content(tmp_path):
    for name, text in {"a": "one", "b": "two", "c/a": "one", "d/a": "six"}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    hashes = [hash_files([tmp_path / name]) for name in ("a", "b", "c/a", "d/a")]
    assert hashes[0] == hashes[2]
    assert len(set(hashes)) == 3
    assert hash_files([]) == "no such file"


@pytest.fixture
def task(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "one"}\n')
    tree = {"data": {"path": str(rows)}, "model": {"path": "tiny"}}
    return Task("sft", tree, str(tmp_path / "run"))


def test_facts_are_versions_command_folder_and_inputs(task, tmp_path):
    facts = start_facts(task)
    assert {"machine", "command", "python", "torch", "rlhf-cli", "code of rlhf-cli"} <= {*facts}
    assert facts["output_dir"] == "no such folder"
    assert facts["data.path"] == hash_files([tmp_path / "rows.jsonl"])
    (tmp_path / "rows.jsonl").unlink()
    assert start_facts(task).get("data.path", "no such file") == "no such file"


def compare(store, rank, task, errors):
    try:
        compare_starts(store, RankEnv(rank, 0, 2, 1), task)
    except (ConfigError, RankFailed) as error:
        errors[rank] = error


def test_every_rank_ends_and_rank_0_has_the_line(task, monkeypatch):
    store, _ = host_store()
    facts = start_facts(task)
    monkeypatch.setattr(same_start, "start_facts", lambda task: facts)
    store.set(f"{same_start.KEY}1", json.dumps({**facts, "machine": "node-b", "torch": "1"}))
    errors = {}
    compare(store, 0, task, errors)
    store.set(f"{same_start.KEY}1", "")
    other = threading.Thread(target=compare, args=(store, 1, task, errors))
    other.start()
    other.join(20)
    assert isinstance(errors[0], ConfigError)
    assert "rank 1 on node-b" in str(errors[0])
    assert isinstance(errors[1], RankFailed)


def test_ranks_of_one_machine_are_not_compared(task):
    compare_starts(None, RankEnv(1, 1, 2, 2), task)
