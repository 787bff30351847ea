"""How ranks end, with small processes in their place."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rlhf_cli import cli
from rlhf_cli.config.rank_env import RankEnv, read_rank_env
from rlhf_cli.errors import DataError, Interrupted, RankFailed
from rlhf_cli.launch import launcher
from rlhf_cli.launch.worker import build_report, read_report, threads_per_process, write_report
from rlhf_cli.registry import COMMANDS
from rlhf_cli.runs import lock
from tests.helpers import take_over

SFT = COMMANDS["sft"]
WAIT = "import time; time.sleep(60)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); {WAIT}"


def processes(*programs):
    return [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        for program in programs
    ]


def watch(*programs, out=Path("run")):
    found = launcher.Supervisor(processes(*programs), out)
    with found.forward_signals():
        found.wait()
    for rank in found.ranks:
        rank.stdout.close()
    return found


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch):
    monkeypatch.setattr(launcher, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(launcher, "KILL_SECONDS", 0.2)


def test_a_killed_rank_ends_the_others_and_is_named(tmp_path):
    began = time.monotonic()
    found = watch(WAIT, "import os; os.kill(os.getpid(), 9)", WAIT)
    assert time.monotonic() - began < 20
    assert str(found.error([], tmp_path)).startswith("rank 1 was killed by SIGKILL")
    assert [rank.returncode for rank in found.ranks] == [-signal.SIGTERM, -9, -signal.SIGTERM]


def test_a_rank_that_does_not_end_is_killed(tmp_path):
    [deaf] = processes(DEAF)
    deaf.stdout.readline()  # it ignores SIGTERM from here on
    [failed] = processes("raise SystemExit(7)")
    launcher.Supervisor([deaf, failed], tmp_path).wait()
    deaf.stdout.close()
    failed.stdout.close()
    assert (deaf.returncode, failed.returncode) == (-signal.SIGKILL, 7)


def test_the_ranks_end_where_another_process_takes_the_folder_over(tmp_path):
    lock.acquire(tmp_path)
    take_over(tmp_path)
    found = watch(WAIT, DEAF, out=tmp_path)
    lock.release(tmp_path)
    assert [rank.returncode for rank in found.ranks] == [-signal.SIGKILL] * 2


def test_a_rank_without_a_word_is_named_with_its_log(tmp_path):
    found = watch("raise SystemExit(7)", WAIT)
    assert str(found.error([], tmp_path)) == "rank 0 exited with code 7 without an error report"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_to_the_parent_reaches_every_rank(number, tmp_path):
    before = signal.signal(number, signal.default_int_handler)  # the command line has such a one
    threading.Timer(0.3, signal.raise_signal, (number,)).start()
    try:
        found = watch(WAIT, WAIT)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    error = found.error([], tmp_path)
    assert isinstance(error, Interrupted)
    assert str(error).startswith(number.name)
    assert [rank.returncode for rank in found.ranks] == [-number] * 2


def test_the_first_error_is_told_not_what_it_did_to_the_others(tmp_path):
    for rank, error in enumerate(
        (RankFailed("connection closed"), DataError("r.jsonl:3: no text"))
    ):
        write_report(tmp_path, build_report(error, rank))
    reports = [read_report(tmp_path, rank) for rank in (0, 1)]
    error = launcher.Supervisor([], tmp_path).error(reports, tmp_path)
    assert isinstance(error, DataError)
    assert str(error) == "r.jsonl:3: no text"


def test_an_unexpected_error_keeps_its_traceback(tmp_path, capsys):
    try:
        {}["loss"]
    except KeyError as error:
        write_report(tmp_path, build_report(error, 1))
    error = read_report(tmp_path, 1).error()
    assert str(error) == "rank 1: KeyError: 'loss'; see its traceback above"
    assert '{}["loss"]' in capsys.readouterr().err


def test_memory_is_told_as_in_one_process():
    report = build_report(MemoryError(), 0)
    assert report.exit_code == 4
    assert report.message == "out of memory"  # Task.run explains it, see tests/memory


def test_no_report_is_none(tmp_path):
    assert read_report(tmp_path, 0) is None


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"WORLD_SIZE": "1", "RANK": "0"}, None),
        ({"WORLD_SIZE": "4"}, None),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}, RankEnv(3, 1, 4)),
        ({"WORLD_SIZE": "4", "RANK": "3"}, RankEnv(3, 3, 4)),
    ],
)
def test_the_place_that_a_launcher_gives(variables, expected):
    assert read_rank_env(variables) == expected


def test_processes_share_the_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_per_process(2) == "3"
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("rlhf_cli.launch.worker.cores", lambda: 6)
    assert [threads_per_process(2), threads_per_process(4), threads_per_process(64)] == [
        "3",
        "1",
        "1",
    ]


def test_more_processes_than_cores_are_refused(tmp_path, capsys):
    argv = ["model=tiny", "data=tiny", "launch.processes=999", f"output_dir={tmp_path / 'run'}"]
    assert cli.main(["sft", *argv]) == 2
    assert "need at most one process per core" in capsys.readouterr().err
