"""The token cache holds at most `$RLHF_CACHE_GB`; what was not used for longest goes."""

import os
import time

import numpy as np
import pytest

from rlhf_cli import cache
from rlhf_cli.cache import ENTRY, CacheEntry, load_entry, store_entry
from rlhf_cli.resources import cache_folder


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "_in_use", set())
    cache._limit_reported.clear()


def store(key, used, *, by_another_run=True):
    """An entry of about 1 MB, last used at that second."""
    store_entry(key, CacheEntry({"tokens": np.zeros(250_000, np.int32)}, {}))
    os.utime(cache_folder() / "tokens" / key / ENTRY, (used, used))
    if by_another_run:
        cache._in_use.clear()


def kept():
    return sorted(folder.name for folder in (cache_folder() / "tokens").iterdir())


def test_the_entries_unused_for_longest_are_removed(monkeypatch):
    monkeypatch.setenv("RLHF_CACHE_GB", "0.0025")
    for number, key in enumerate(("a", "b")):
        store(key, number)
    assert load_entry("a") is not None  # used now
    store("c", 5)
    assert kept() == ["a", "c"]


def test_the_new_entry_stays_even_if_it_is_too_large(monkeypatch):
    monkeypatch.setenv("RLHF_CACHE_GB", "0.0001")
    store("a", 0)
    store("b", 0)
    assert kept() == ["b"]


def test_the_entries_of_this_run_stay(monkeypatch, capsys):
    store("train", 0)
    store("old", 1)
    assert load_entry("train") is not None
    os.utime(cache_folder() / "tokens" / "train" / ENTRY, (0, 0))
    monkeypatch.setenv("RLHF_CACHE_GB", "0.0015")
    for key in ("held_out", "more"):  # as the second half of a run that has its first
        store(key, 0, by_another_run=False)
    assert kept() == ["held_out", "more", "train"]
    said = capsys.readouterr().err
    assert said.count("cache: the entries in use take 0.00") == 1
    assert "(RLHF_CACHE_GB=0.0015); they stay for now" in said


def test_what_another_run_has_just_used_stays(monkeypatch):
    now = time.time()
    store("recent", now - cache.RECENT_SECONDS + 60)
    store("older", now - cache.RECENT_SECONDS - 60)
    monkeypatch.setenv("RLHF_CACHE_GB", "0.0015")
    store("new", now)
    assert kept() == ["new", "recent"]


@pytest.mark.parametrize("limit", ["", "many"])
def test_without_a_number_the_limit_is_20(monkeypatch, capsys, limit):
    monkeypatch.setenv("RLHF_CACHE_GB", limit)
    store("a", 0)
    store("b", 0)
    assert kept() == ["a", "b"]
    assert ("RLHF_CACHE_GB=many is no number; taking 20" in capsys.readouterr().err) is bool(limit)


def test_what_is_no_entry_is_left_alone(monkeypatch):
    monkeypatch.setenv("RLHF_CACHE_GB", "0.0001")
    other = cache_folder() / "tokens" / "notes"
    other.mkdir(parents=True)
    (other / "file").write_bytes(b"x" * 10**6)
    store("a", 0)
    assert kept() == ["a", "notes"]
