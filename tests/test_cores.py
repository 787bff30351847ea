"""Which cores are ours, and what is done with them."""

import os

import pytest
import torch

from rlhf_cli import cores as module
from rlhf_cli.context import configure_cpu
from rlhf_cli.cores import cores, limit_thread_spinning

SECOND = {"cpu.max": "150000 100000\n"}
FIRST = {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}
UNLIMITED = {"cpu.max": "max 100000\n"}
NEITHER = {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("files", "expected"), [(SECOND, 2), (FIRST, 4), (UNLIMITED, 6), (NEITHER, 6), ({}, 6)]
)
def test_a_container_has_the_cores_of_its_share(files, expected, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(module, "CGROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(6)), raising=False)
    assert cores() == expected


def test_threads_are_no_more_than_cores_unless_the_user_says_so(monkeypatch):
    monkeypatch.setattr("rlhf_cli.context.cores", lambda: 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        configure_cpu()
        assert torch.get_num_threads() == 3
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert configure_cpu().startswith(" of 1 core")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_threads_that_wait_give_up_their_core_beside_other_work(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "LOAD", tmp_path / "loadavg")
    limit_thread_spinning()  # no such file
    (tmp_path / "loadavg").write_text("2.10 1.90 1.80 1/201 4711")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    limit_thread_spinning()
    assert "GOMP_SPINCOUNT" not in os.environ
    (tmp_path / "loadavg").write_text("0.10 0.10 0.10 3/201 4711")
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    limit_thread_spinning()
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    limit_thread_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    limit_thread_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
