"""Phases of a run: where an error happened, and the peak of each."""

import pytest

from rlhf_cli.memory.phase import PhaseRecord, phase


@pytest.fixture
def record(monkeypatch):
    """A record whose peaks are given by the test."""
    own = PhaseRecord(read_peak=lambda: own.peak, reset_peak=lambda: setattr(own, "peak", 0))
    own.peak = 0
    monkeypatch.setattr("rlhf_cli.memory.phase.RECORD", own)
    return own


def test_each_phase_has_its_own_peak_and_an_inner_one_counts_for_itself(record):
    with phase("evaluate"):
        record.peak = 3
        with phase("rollout"):
            record.peak = 9
        record.peak = 5
    assert record.peaks == {"evaluate": 5, "rollout": 9}
    assert (record.highest, record.phase) == (9, "")


def test_the_innermost_phase_that_failed_is_remembered_until_the_next(record):
    with pytest.raises(MemoryError), phase("evaluate"), phase("rollout"):
        raise MemoryError
    assert (record.failed, record.phase) == ("rollout", "")
    with phase("save"):
        assert record.failed == ""


def test_a_new_run_starts_without_peaks(record):
    with phase("load"):
        record.peak = 7
    record.start(record.read_peak, record.reset_peak)
    assert (record.peaks, record.highest) == ({}, 0)
