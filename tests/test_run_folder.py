import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_cli import lock
from rlhf_cli.errors import CheckpointError, ConfigError, ModelError
from rlhf_cli.run_folder import (
    allocate,
    begin_manifest,
    claim,
    finish_manifest,
    resolve_run,
    write_json_atomic,
    write_text_atomic,
)

TREE = {"train": {"lr": 1e-4, "epochs": 1}, "seed": 0, "output_dir": "x", "resume": "auto"}


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_given_folder_is_used_as_it_is(tmp_path):
    assert allocate("sft", "runs/mine") == tmp_path / "runs" / "mine"


def test_runs_of_the_same_second_get_folders_of_their_own():
    made = {allocate("sft", "") for _ in range(20)}
    assert len(made) == 20
    assert all(path.is_dir() and path.name.startswith("sft-") for path in made)


def test_fresh_then_continue_then_complete(tmp_path):
    out = tmp_path / "run"
    assert claim(out, TREE, "sft", "auto") == "fresh"
    assert "output_dir" not in (out / "config.yaml").read_text()
    assert "resume" not in (out / "config.yaml").read_text()
    assert claim(out, TREE, "sft", "auto") == "continue"
    begin_manifest(out, "sft", ["sft"], TREE)
    assert claim(out, TREE, "sft", "auto") == "continue"
    finish_manifest(out, "complete", steps=3)
    assert claim(out, {**TREE, "output_dir": "y", "resume": "never"}, "sft", "never") == "complete"


def test_another_configuration_is_refused_with_every_difference(tmp_path):
    claim(tmp_path / "run", TREE, "sft", "auto")
    other = {**TREE, "train": {"lr": 2e-4, "epochs": 1}, "seed": 1}
    with pytest.raises(ConfigError) as caught:
        claim(tmp_path / "run", other, "sft", "auto")
    assert str(caught.value).splitlines() == [
        f"output_dir: {tmp_path}/run holds a run with other values; use the same or another "
        "output_dir",
        "  train.lr: 0.0001 -> 0.0002",
        "  seed: 0 -> 1",
    ]


def test_a_run_of_another_stage_is_refused(tmp_path):
    claim(tmp_path / "run", TREE, "sft", "auto")
    with pytest.raises(ConfigError, match="holds a run of sft, not of pretrain"):
        claim(tmp_path / "run", TREE, "pretrain", "auto")


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match="holds files but no run"):
        claim(tmp_path, TREE, "sft", "auto")
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(ConfigError, match="is a file; need a folder"):
        claim(tmp_path / "x", TREE, "sft", "auto")


def test_resume_never_refuses_an_unfinished_run(tmp_path):
    claim(tmp_path / "run", TREE, "sft", "never")
    with pytest.raises(ConfigError, match=r"got never, but .* holds an unfinished run"):
        claim(tmp_path / "run", TREE, "sft", "never")


def test_a_folder_that_cannot_be_written_is_an_error_in_words(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(CheckpointError, match="cannot be written: Not a directory"):
        claim(tmp_path / "x" / "y", TREE, "sft", "auto")


def test_a_live_owner_is_named(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        owned_by(tmp_path, other.pid)
        with pytest.raises(CheckpointError, match=f"belongs to process {other.pid} on "):
            lock.acquire(tmp_path)
        other.communicate(b"\n")
    lock.acquire(tmp_path)  # its process is dead now


def test_a_later_process_with_the_same_id_is_not_the_owner(tmp_path):
    owned_by(tmp_path, os.getppid(), started="1")
    if Path("/proc/self/stat").exists():
        lock.acquire(tmp_path)


def test_an_owner_on_another_host_is_taken_for_alive(tmp_path):
    owned_by(tmp_path, 1, host="elsewhere")
    with pytest.raises(CheckpointError, match=r"on elsewhere; .* if it is gone, remove .*\.lock"):
        lock.acquire(tmp_path)


def test_a_lock_cut_off_by_a_crash_is_taken_over(tmp_path):
    (tmp_path / ".lock").write_text('{"pid": 1')
    lock.acquire(tmp_path)
    lock.release(tmp_path)
    assert not (tmp_path / ".lock").exists()


def test_one_of_many_gets_the_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        won = pool.map(try_to_own, [tmp_path] * 4, chunksize=1)
        # a pool may give one process several turns, and the owner may ask again
        assert len({pid for pid in won if pid}) == 1


def try_to_own(path: Path) -> int:
    try:
        lock.acquire(path)
    except CheckpointError:
        return 0
    return os.getpid()


def owned_by(path: Path, pid: int, started: str = "", host: str = "") -> None:
    lock.acquire(path)
    owner = json.loads((path / ".lock").read_text())
    stat = Path("/proc", str(pid), "stat")
    real = stat.read_text().rpartition(")")[2].split()[19] if stat.exists() else ""
    owner |= {"pid": pid, "started": started or real, "host": host or owner["host"]}
    (path / ".lock").write_text(json.dumps(owner))


def test_resolve_run_gives_the_model_of_a_finished_run(tmp_path):
    assert resolve_run(tmp_path) == tmp_path
    begin_manifest(tmp_path, "sft", ["sft"], TREE)
    with pytest.raises(ModelError, match=r"not finished \(status: running\)"):
        resolve_run(tmp_path)
    finish_manifest(tmp_path, "complete")
    with pytest.raises(ModelError, match="without a model folder"):
        resolve_run(tmp_path)
    (tmp_path / "model").mkdir()
    assert resolve_run(tmp_path) == tmp_path / "model"


def test_the_manifest_tells_what_ran_and_how_it_ended(tmp_path):
    begin_manifest(tmp_path, "sft", ["sft", "seed=1"], TREE)
    begin_manifest(tmp_path, "sft", ["sft", "seed=1"], TREE)
    finish_manifest(tmp_path, "failed", error="no rows")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert manifest["error"] == "no rows"
    assert manifest["argv"] == ["sft", "seed=1"]
    assert len(manifest["starts"]) == 2
    assert len(manifest["config_sha256"]) == 64
    assert "torch" in manifest["versions"]


def test_a_broken_manifest_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"manifest\.json: not valid JSON"):
        resolve_run(tmp_path)


def test_atomic_writes_replace_whole_files_and_leave_nothing_beside(tmp_path):
    write_json_atomic(tmp_path / "a.json", {"π": 3})
    write_text_atomic(tmp_path / "a.json", "new")
    with pytest.raises(TypeError):
        write_json_atomic(tmp_path / "a.json", object())
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.json", "new")]
