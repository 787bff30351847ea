"""Hashes of files are computed once, and anew where a file may have changed."""

import hashlib
import os
import time

import pytest

from rlhf_cli.runs import digest
from rlhf_cli.runs.digest import SMALL_BYTES, file_sha256


@pytest.fixture
def computed(monkeypatch, tmp_path):
    """Names of the files that were read."""
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    real, found = digest.hash_file, []
    monkeypatch.setattr(digest, "hash_file", lambda path: found.append(path.name) or real(path))
    monkeypatch.setattr(digest, "RECENT_NS", 0)
    return found


def test_a_large_file_is_read_once(tmp_path, computed):
    path = tmp_path / "rows.jsonl"
    content = os.urandom(SMALL_BYTES)
    path.write_bytes(content)
    time.sleep(0.01)
    assert {file_sha256(path) for _ in range(3)} == {hashlib.sha256(content).hexdigest()}
    assert computed == ["rows.jsonl"]


def test_a_change_that_keeps_size_and_time_is_seen(tmp_path, computed):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"a" * SMALL_BYTES)
    status = path.stat()
    time.sleep(0.01)
    before = file_sha256(path)
    path.write_bytes(b"b" * SMALL_BYTES)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file_sha256(path) != before
    assert len(computed) == 2


def test_a_file_that_just_changed_is_not_remembered(tmp_path, computed, monkeypatch):
    monkeypatch.setattr(digest, "RECENT_NS", 10**11)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"a" * SMALL_BYTES)
    assert file_sha256(path) == file_sha256(path)
    assert len(computed) == 2


def test_small_files_and_caches_that_cannot_be_written_are_read_each_time(tmp_path, computed):
    small, large = tmp_path / "small.json", tmp_path / "large.json"
    small.write_text("{}")
    large.write_bytes(b"a" * SMALL_BYTES)
    (tmp_path / "cache").write_text("no folder")
    time.sleep(0.01)
    for path in (small, small, large, large):
        file_sha256(path)
    assert computed == ["small.json"] * 2 + ["large.json"] * 2


def test_a_failed_write_leaves_no_file(tmp_path, computed, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"a" * SMALL_BYTES)
    time.sleep(0.01)
    monkeypatch.setattr(digest.os, "replace", full)
    assert file_sha256(path) == hashlib.sha256(b"a" * SMALL_BYTES).hexdigest()
    assert list((tmp_path / "cache" / digest.FOLDER).iterdir()) == []


def test_old_hashes_are_removed(tmp_path, computed):
    path = tmp_path / "rows.jsonl"
    stored = tmp_path / "cache" / digest.FOLDER
    for content, age in ((b"a", digest.KEPT_SECONDS + 60), (b"b", 60)):
        path.write_bytes(content * SMALL_BYTES)
        time.sleep(0.01)
        file_sha256(path)
        before = time.time() - age
        for file in stored.iterdir():
            os.utime(file, (before, before))
    path.write_bytes(b"c" * SMALL_BYTES)
    time.sleep(0.01)
    file_sha256(path)
    assert len(list(stored.iterdir())) == 2
