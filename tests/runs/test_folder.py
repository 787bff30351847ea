import errno
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from rlhf_cli.config.deprecations import RENAMED_KEYS
from rlhf_cli.errors import CheckpointError, ConfigError, Interrupted, ModelError
from rlhf_cli.runs import lock, manifest, run_files
from rlhf_cli.runs.artifact import resolve_run
from rlhf_cli.runs.folder import allocate, claim, list_checkpoints
from rlhf_cli.runs.run_files import write_json_atomic, write_text_atomic
from rlhf_cli.stages.sft.config import SFTConfig
from tests.helpers import take_over

TREE = {"train": {"lr": 1e-4, "log_steps": 1}, "seed": 0, "output_dir": "x", "resume": "auto"}
OTHER = {**TREE, "train": {"lr": 2e-4, "log_steps": 5}, "seed": 1}


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_given_folder_is_used_as_it_is(tmp_path):
    assert allocate("sft", "runs/mine") == tmp_path / "runs" / "mine"


def test_runs_of_the_same_second_get_folders_of_their_own():
    made = {allocate("sft", "") for _ in range(20)}
    assert len(made) == 20
    assert all(path.is_dir() and path.name.startswith("sft-") for path in made)


def test_a_folder_for_a_new_run_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "runs").touch()
    with pytest.raises(CheckpointError) as caught:
        allocate("sft", "")
    assert str(caught.value) == (
        "runs: cannot be written (file exists); give another output_dir=FOLDER, and start again"
    )


def test_a_link_to_nowhere_is_no_folder_for_runs(tmp_path):
    (tmp_path / "runs").symlink_to("nowhere")
    with pytest.raises(CheckpointError, match="cannot be written"):
        allocate("sft", "")


def test_fresh_then_continue_then_complete(tmp_path):
    out = tmp_path / "run"
    assert claim(out, TREE, "sft", "auto") == "fresh"
    assert "output_dir" not in (out / "config.yaml").read_text()
    assert "resume" not in (out / "config.yaml").read_text()
    assert begun(out) == "fresh"
    with_checkpoint(out)
    assert claim(out, TREE, "sft", "auto") == "continue"
    manifest.complete(out, steps=3)
    assert claim(out, {**TREE, "output_dir": "y", "resume": "never"}, "sft", "never") == "complete"


def begun(out: Path, tree: dict = TREE, stage: str = "sft") -> str:
    decision = claim(out, tree, stage, "auto")
    manifest.write_start(out, stage, [stage], tree)
    return decision


def with_checkpoint(out: Path, name: str = "step-000001") -> None:
    (out / "checkpoints" / name).mkdir(parents=True)


def test_another_configuration_is_refused_with_every_difference_that_matters(tmp_path):
    begun(tmp_path / "run")
    with_checkpoint(tmp_path / "run")
    with pytest.raises(ConfigError) as caught:
        claim(tmp_path / "run", OTHER, "sft", "auto")
    assert str(caught.value).splitlines() == [
        f"output_dir: {tmp_path}/run holds a run with other values; use the same or another "
        "output_dir",
        "  train.lr: 0.0001 -> 0.0002",
        "  seed: 0 -> 1",
    ]


def test_a_run_of_another_stage_is_refused(tmp_path):
    begun(tmp_path / "run")
    with_checkpoint(tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a run of sft, not of pretrain"):
        claim(tmp_path / "run", TREE, "pretrain", "auto")


def test_a_configuration_without_a_run_may_be_the_users_and_is_kept(tmp_path):
    (tmp_path / "config.yaml").write_text("stage: sft\nseed: 3\n")
    with pytest.raises(ConfigError, match="holds a run with other values"):
        claim(tmp_path, TREE, "sft", "auto")
    assert (tmp_path / "config.yaml").read_text() == "stage: sft\nseed: 3\n"


@pytest.mark.parametrize("left", ["", "step-000002.tmp"])
@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_a_run_that_came_to_nothing_does_not_bind_its_folder(tmp_path, left, error):
    out = tmp_path / "run"
    begun(out)
    manifest.fail(out, error)
    (out / "metrics.jsonl").write_text('{"step": 1}\n')
    if left:
        with_checkpoint(out, left)
    assert claim(out, OTHER, "pretrain", "never") == "fresh"
    assert not (out / "metrics.jsonl").exists()
    text = (out / "config.yaml").read_text()
    assert text.startswith("stage: pretrain\n")
    assert "lr: 0.0002" in text


def test_a_model_without_a_checkpoint_binds_its_folder(tmp_path):
    begun(tmp_path / "run")
    (tmp_path / "run" / "model").mkdir()
    with pytest.raises(ConfigError, match="other values"):
        claim(tmp_path / "run", OTHER, "sft", "auto")


def test_what_does_not_change_the_result_may_change_when_a_run_goes_on(tmp_path):
    begun(tmp_path / "run")
    with_checkpoint(tmp_path / "run")
    other = {**TREE, "train": {"lr": 1e-4, "log_steps": 5}}
    assert claim(tmp_path / "run", other, "sft", "auto") == "continue"
    assert "log_steps: 5" in (tmp_path / "run" / "config.yaml").read_text()


def old_run(out: Path, text: str) -> None:
    """An unfinished run whose configuration another version wrote."""
    begun(out)
    with_checkpoint(out)
    (out / "config.yaml").write_text(text)


def test_a_key_that_was_added_since_is_no_difference_at_its_default(tmp_path):
    tree = asdict(SFTConfig())
    tree["train"]["lr"] = 1e-4
    old_run(tmp_path / "run", "stage: sft\ntrain: {lr: 1e-4}\n")
    assert claim(tmp_path / "run", tree, "sft", "auto") == "continue"
    assert "epochs: 1\n" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_key_that_was_added_since_is_a_difference_at_another_value(tmp_path):
    tree = asdict(SFTConfig())
    tree["train"]["epochs"], tree["data"]["columns"] = 3, {"prompt": "q"}
    old_run(tmp_path / "run", "stage: sft\nseed: 1\n")
    with pytest.raises(ConfigError) as caught:
        claim(tmp_path / "run", tree, "sft", "auto")
    assert str(caught.value).splitlines()[1:] == [
        "  seed: 1 -> 0",
        "  data.columns.prompt: (not set) -> q",
        "  train.epochs: (not set) -> 3",
    ]


def test_a_key_that_was_renamed_since_is_compared_by_its_name_of_today(tmp_path, monkeypatch):
    monkeypatch.setitem(RENAMED_KEYS, "train.steps", ("train.max_steps", "0.3"))
    tree = asdict(SFTConfig())
    tree["train"]["max_steps"] = 5
    old_run(tmp_path / "run", "stage: sft\ntrain: {steps: 5}\n")
    assert claim(tmp_path / "run", tree, "sft", "auto") == "continue"
    old_run(tmp_path / "other", "stage: sft\ntrain: {steps: 4}\n")
    with pytest.raises(ConfigError, match=r"\n  train.max_steps: 4 -> 5$"):
        claim(tmp_path / "other", tree, "sft", "auto")


def test_a_literal_reference_is_the_same_again(tmp_path):
    tree = {**TREE, "model": {"revision": "${x}"}}
    begun(tmp_path / "run", tree)
    with_checkpoint(tmp_path / "run")
    assert claim(tmp_path / "run", tree, "sft", "auto") == "continue"


def test_checkpoints_are_complete_ones_in_order(tmp_path):
    assert list_checkpoints(tmp_path) == []
    for name in ("step-000010", "step-000002", "step-000011.tmp"):
        with_checkpoint(tmp_path, name)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000002", "step-000010"]


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
    begun(tmp_path / "run")
    with_checkpoint(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"got never, but .* holds an unfinished run"):
        claim(tmp_path / "run", TREE, "sft", "never")


def test_a_folder_that_cannot_be_written_is_an_error_in_words(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(CheckpointError, match=r"y: cannot be written \(not a directory\)"):
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


def last_beat(path: Path, seconds_ago: float) -> None:
    now = time.time() - seconds_ago
    os.utime(path / ".lock", (now, now))


def test_an_owner_on_another_host_is_alive_while_its_heartbeat_is_new(tmp_path):
    owned_by(tmp_path, 1, host="elsewhere")
    last_beat(tmp_path, lock.STALE_SECONDS - 10)
    with pytest.raises(CheckpointError, match=r"on elsewhere, which was alive 2[89]\d s ago"):
        lock.acquire(tmp_path)
    assert json.loads((tmp_path / ".lock").read_text())["host"] == "elsewhere"


def test_a_lock_of_another_host_with_an_old_heartbeat_is_taken_over(tmp_path):
    owned_by(tmp_path, 1, host="elsewhere")
    last_beat(tmp_path, lock.STALE_SECONDS + 1)
    lock.acquire(tmp_path)
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]


def test_an_owner_shows_that_it_is_alive_until_it_gives_the_folder_up(tmp_path, monkeypatch):
    beaten = threading.Event()
    refresh = lock.refresh

    def noting(path):
        owned = refresh(path)
        beaten.set()
        return owned

    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(lock, "refresh", noting)
    lock.acquire(tmp_path)
    last_beat(tmp_path, 1000)
    beaten.clear()
    assert beaten.wait(10)
    assert time.time() - (tmp_path / ".lock").stat().st_mtime < 100
    lock.release(tmp_path)
    refresh(tmp_path)
    assert not (tmp_path / ".lock").exists()


def test_a_process_with_the_same_id_elsewhere_keeps_the_folder_that_it_took_over(tmp_path):
    owned_by(tmp_path, os.getpid(), host="elsewhere")
    last_beat(tmp_path, 1000)
    before = (tmp_path / ".lock").stat().st_mtime
    lock.refresh(tmp_path)
    assert (tmp_path / ".lock").stat().st_mtime == before
    lock.release(tmp_path)
    assert (tmp_path / ".lock").exists()


@pytest.mark.parametrize("removed", [False, True])
def test_an_owner_that_was_suspended_learns_that_its_folder_was_taken_over(tmp_path, removed):
    lock.require_owned(tmp_path)  # a folder that nobody claimed, as of PPOTrainer
    lock.acquire(tmp_path)
    assert lock.refresh(tmp_path)
    lock.require_owned(tmp_path)
    take_over(tmp_path)
    if removed:  # the other owner has already ended
        (tmp_path / ".lock").unlink()
    assert not lock.refresh(tmp_path)
    with pytest.raises(CheckpointError, match=r"output_dir: .* was taken over by another process"):
        lock.require_owned(tmp_path)
    lock.release(tmp_path)
    assert (tmp_path / ".lock").exists() != removed


def test_the_heartbeat_finds_out_that_a_folder_was_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    before = threading.enumerate()
    lock.acquire(tmp_path)
    [beating] = [thread for thread in threading.enumerate() if thread not in before]
    take_over(tmp_path)
    beating.join(10)
    assert not beating.is_alive()
    assert lock.is_lost(tmp_path)
    lock.release(tmp_path)


def test_a_disk_that_does_not_answer_is_no_loss(tmp_path, monkeypatch):
    lock.acquire(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", lambda *_: (_ for _ in ()).throw(OSError(errno.ESTALE, "stale")))
        assert lock.refresh(tmp_path)
    lock.release(tmp_path)


def test_an_owner_takes_a_lost_folder_again_when_it_is_free(tmp_path):
    lock.acquire(tmp_path)
    take_over(tmp_path)
    assert lock.is_lost(tmp_path)
    (tmp_path / ".lock").unlink()
    lock.acquire(tmp_path)
    assert not lock.is_lost(tmp_path)
    lock.release(tmp_path)


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
    manifest.write_start(tmp_path, "sft", ["sft"], TREE)
    with pytest.raises(ModelError, match=r"not finished \(status: running\)"):
        resolve_run(tmp_path)
    manifest.complete(tmp_path)
    with pytest.raises(ModelError, match="without a model folder"):
        resolve_run(tmp_path)
    (tmp_path / "model").mkdir()
    assert resolve_run(tmp_path) == tmp_path / "model"


def test_the_manifest_tells_what_ran_and_how_it_ended(tmp_path):
    manifest.write_start(tmp_path, "sft", ["sft", "seed=1"], TREE)
    manifest.write_start(tmp_path, "sft", ["sft", "seed=1"], TREE)
    manifest.fail(tmp_path, ValueError("no rows"))
    told = manifest.read(tmp_path)
    assert told["status"] == "failed"
    assert told["error"] == "ValueError: no rows"
    assert told["argv"] == ["sft", "seed=1"]
    assert len(told["starts"]) == 2
    assert len(told["config_sha256"]) == 64
    assert "torch" in told["versions"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted("stopped after step 7")])
def test_an_interrupted_run_has_not_failed(tmp_path, error):
    manifest.write_start(tmp_path, "sft", ["sft"], TREE)
    manifest.fail(tmp_path, error)
    assert manifest.status(tmp_path) == "interrupted"
    with pytest.raises(ModelError, match=r"not finished \(status: interrupted\)"):
        resolve_run(tmp_path)


def test_a_manifest_of_another_tool_makes_no_run(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    assert resolve_run(tmp_path) == tmp_path


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


# A disk that takes nothing more


@pytest.fixture
def full_disk(monkeypatch):
    """Every atomic write fails as on a full disk; the file it would replace stands."""

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_files.os, "fsync", fail)


def test_a_full_disk_leaves_the_old_file_and_says_what_to_do(tmp_path, full_disk):
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(CheckpointError) as caught:
        write_json_atomic(tmp_path / "a.json", {})
    assert str(caught.value) == (
        f"{tmp_path}/a.json: cannot be written (no space left on device); free disk space or give "
        "another output_dir=FOLDER, and start again"
    )
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.json", "old")]


def test_a_claim_on_a_full_disk_is_one_line(tmp_path, full_disk):
    with pytest.raises(CheckpointError, match=r"config\.yaml: cannot be written"):
        claim(tmp_path / "run", TREE, "sft", "auto")


def test_a_manifest_on_a_full_disk_is_one_line_at_start_and_end(tmp_path, full_disk):
    for write in (
        lambda: manifest.write_start(tmp_path, "sft", [], TREE),
        lambda: manifest.complete(tmp_path),
    ):
        with pytest.raises(CheckpointError, match=r"manifest\.json: cannot be written"):
            write()


def test_a_failure_that_cannot_be_written_down_is_not_hidden_by_that(tmp_path, full_disk):
    manifest.fail(tmp_path, ValueError("the reason"))
    assert manifest.read(tmp_path) == {}


def test_a_lock_on_a_read_only_disk(tmp_path, monkeypatch):
    lock.acquire(tmp_path)

    def fail(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patched:
        patched.setattr(lock.os, "open", fail)
        lock.release(tmp_path)
        with pytest.raises(CheckpointError, match=r"cannot be written \(read-only file system\)"):
            claim(tmp_path / "run", TREE, "sft", "auto")
    lock.release(tmp_path)


SEPARATORS = ["\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
"""Characters at which `str.splitlines` or text mode cut, though they end no line of a file."""


@pytest.mark.parametrize("letter", SEPARATORS, ids=ascii)
def test_only_line_feeds_end_a_line(tmp_path, letter):
    path = tmp_path / "lines.txt"
    path.write_bytes(f"\ufeffa{letter}b\r\n\n{letter}c".encode())
    assert run_files.read_lines(path) == [f"a{letter}b", "", f"{letter}c"]
    path.write_bytes(f'{{"text": "a{letter}b"}}\n{{"te'.encode())
    if letter > "\x1f":  # JSON has the others as escapes only
        assert run_files.read_json_lines(path) == [{"text": f"a{letter}b"}]
