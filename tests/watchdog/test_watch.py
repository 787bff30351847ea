"""Watching threads of ranks in one process, and real processes that are killed and stopped."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from rlhf_cli.distributed.process_group import host_store
from rlhf_cli.errors import DataError
from rlhf_cli.memory.phase import phase
from rlhf_cli.watchdog.beats import DONE, read_beat
from rlhf_cli.watchdog.observer import Limits
from rlhf_cli.watchdog.watch import KEY, Watch, find_cause, last_phase, watched

SHORT = Limits(beat=0.05, silent=0.4, slow=0.4, repeat=0.6, grace=0.05)

RANK = """
import os, sys, time
from rlhf_cli.distributed.process_group import init_process_group, rendezvous_store
from rlhf_cli.distributed.ranks import *
from rlhf_cli.memory.phase import phase
from rlhf_cli.watchdog.observer import Limits
from rlhf_cli.watchdog.watch import Watch, watched
rank, world_size, act = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
store = rendezvous_store("env://", rank, world_size)

def end(error):
    print(f"ended: {error}", flush=True)
    os._exit(1)

def say(text):
    print(f"said: {text}", flush=True)

limits = Limits(beat=0.1, silent=1.0, slow=1.0, repeat=5.0, grace=0.5)
with watched(Watch(store, rank, world_size, say, end, limits)):
    init_process_group(store, rank, world_size, rank)
    ranks = current_ranks()
    ranks.any(False)
    print("ready", flush=True)
    if rank == 1 and act == "raise":
        with phase("load"):
            raise FileNotFoundError("weights.safetensors")
    with phase("rollout"):
        if rank == 1 and act != "leave":
            time.sleep(int(act))
    try:
        if rank != 1 or act != "leave":
            ranks.any(False)
    except RankFailed as error:
        print(f"failed: {error}", flush=True)
if rank == 1 and act == "leave":
    time.sleep(30)  # its connections stay, as with NCCL
sys.stdout.flush()
os._exit(0)  # as `run_rank` does: torch's threads can abort Python while it shuts down
"""


@contextmanager
def real_ranks(act, count=3):
    """Store and processes of real ranks; rank 1 acts."""
    store, port = host_store()
    variables = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(count), act],
            env=variables,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        for rank in ranks:
            assert rank.stdout.readline() == "ready\n"
        yield store, ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def wait_for_phase(store, name):
    """Until rank 1 has said that it is in a phase."""
    deadline = time.monotonic() + 10
    while last_phase(store, 1) != name:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def texts(ranks):
    found = [rank.communicate(timeout=60)[0] for rank in ranks]
    return [re.sub(r"process \d+ on [^)]*", "process", text) for text in found]


def test_a_killed_rank_is_named_by_the_others():
    with real_ranks("60") as (store, ranks):
        wait_for_phase(store, "rollout")
        began = time.monotonic()
        ranks[1].kill()
        first, _, third = texts(ranks)
        assert time.monotonic() - began < 60
        for text in (first, third):
            assert text.startswith(
                "failed: rank 1 (process) was ended from outside in phase rollout"
            )
            assert "Give the same command again to continue" in text


@pytest.mark.slow
def test_a_stopped_rank_is_named_and_not_ended():
    with real_ranks("2", count=2) as (store, ranks):
        wait_for_phase(store, "rollout")
        ranks[1].send_signal(signal.SIGSTOP)
        assert "is stopped (SIGSTOP)" in ranks[0].stdout.readline()
        ranks[1].send_signal(signal.SIGCONT)
        assert all("failed" not in text and "ended" not in text for text in texts(ranks))
        assert [rank.returncode for rank in ranks] == [0, 0]


def test_a_slow_rank_is_named_with_its_phase_and_line_and_not_ended():
    with real_ranks("3", count=2) as (_, ranks):
        first, second = texts(ranks)
        assert first.startswith(
            "said: rank 1 (process) is behind in phase rollout, at <string>:29 in"
        )
        assert "1 other rank has waited 1 s for it" in first
        assert second == ""
        assert [rank.returncode for rank in ranks] == [0, 0]


@pytest.mark.slow
def test_an_error_of_a_rank_is_told_by_the_others():
    with real_ranks("raise", count=2) as (_, ranks):
        first, _ = texts(ranks)
        assert "rank 1 (process) failed in phase load: weights.safetensors" in first


@pytest.mark.slow
def test_a_rank_that_left_early_is_named():
    with real_ranks("leave", count=2) as (_, ranks):
        first = texts(ranks[:1])[0]
        assert "rank 1 (process) has ended its part, but the other ranks wait for it" in first


@pytest.fixture
def stores():
    """A store, with a connection of its own for each rank."""
    store, _ = host_store()
    return store


def watch_of(rank, store, said, ended=None, world_size=2):
    return Watch(
        store, rank, world_size, said.append, (said if ended is None else ended).append, SHORT
    )


def test_the_same_is_said_again_only_rarely(stores):
    said = []
    with watched(watch_of(0, stores, said)) as first:
        first.observer.finding = lambda now: SLOW
        time.sleep(1.0)
    assert 1 <= len(said) <= 2


class SLOW:
    """A finding that is not fatal."""

    text, kind, fatal = "rank 1 is behind", "slow 1", False


def test_the_main_thread_is_ended_where_it_is_stuck(stores):
    ended = []
    with pytest.raises(DataError), watched(watch_of(1, stores, [])), phase("load"):
        raise DataError("no rows")
    with watched(watch_of(0, stores, [], ended)):
        time.sleep(1.0)
    [error] = ended
    assert "rank 1" in str(error)
    assert "failed in phase load: no rows" in str(error)


def test_nothing_is_posted_after_the_last_beat(stores):
    watch = watch_of(0, stores, [], world_size=1)
    with watched(watch):
        pass
    watch._look(time.monotonic())  # the thread was about to do so
    assert read_beat(stores.get(f"{KEY}0")).outcome == DONE


def test_a_cause_is_sought_while_no_beats_are_added(stores):
    held = []
    watch = watch_of(0, stores, [], world_size=1)
    watch.observer.finding = lambda now: held.append(watch.lock.locked())
    watch._conclude(time.monotonic())
    assert held == [True]


def test_without_ranks_there_is_no_cause():
    assert find_cause() == ""


def test_a_store_that_does_not_answer_ends_the_run(stores):
    ended = []
    watch = watch_of(0, stores, [], ended)
    watch._look = lambda now: time.sleep(30)  # as on a machine whose network is gone
    with watched(watch):
        time.sleep(1.2)
    assert "MASTER_ADDR names, does not answer" in str(ended[0])
