"""Verdicts on ranks, from beats and a clock that the tests set."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import distributed as dist
from torch._C._distributed_c10d import HashStore

from rlhf_cli.distributed.process_group import destroy_process_group, init_process_group
from rlhf_cli.watchdog.beats import (
    ALIVE,
    DONE,
    FAILED,
    GONE,
    STOPPED,
    Beat,
    main_thread_place,
    own_beat,
    process_space,
    process_state,
    read_beat,
)
from rlhf_cli.watchdog.observer import Limits, Observer

LIMITS = Limits()
MINUTE = 60.0
ALL = "0 of rank 0"


def beat(rank, number=1, calls=0, **changes):
    """A beat of a rank on a machine that this one cannot see, two ranks on each.

    `calls` are the collective calls in the group of all ranks.
    """
    machine = f"node-{rank // 2}"
    plain = Beat(rank=rank, machine=machine, space=machine, pid=100 + rank, number=number)
    own = {"phase": "update", "place": "loop.py:7 in step", "collectives": {ALL: calls}}
    return replace(plain, **own | changes)


def observe(*moments):
    """An observer of moments (seconds, beats); of the others the number stays."""
    found = Observer(LIMITS, now=0)
    for now, beats in moments:
        found.see({one.rank: one for one in beats}, now)
    return found


def test_ranks_that_beat_and_move_are_well():
    found = observe(*[(t, [beat(r, t, calls=t) for r in range(4)]) for t in range(1, 100, 5)])
    assert found.finding(100) is None


def test_a_rank_that_the_others_wait_for_is_named_within_a_minute_and_not_ended():
    counts = (8, 7, 8, 8)
    beats = [(t, [beat(r, t, calls=counts[r]) for r in range(4)]) for t in range(1, 52, 5)]
    finding = observe(*beats).finding(51)
    assert not finding.fatal
    assert finding.kind == "slow 1"
    assert finding.text == (
        "rank 1 (process 101 on node-0) is behind in phase update, at loop.py:7 in step; "
        "3 other ranks have waited 50 s for it"
    )


def test_ranks_that_compute_for_long_together_are_not_behind():
    beats = [(t, [beat(r, t, calls=7) for r in range(4)]) for t in range(1, 600, 5)]
    assert observe(*beats).finding(600) is None


def test_counts_of_different_groups_are_not_compared():
    """Context groups of two ranks have unlike numbers of calls; rank 3 is waited for."""
    groups = ["1 of rank 0", "1 of rank 2"]
    pairs = ((9, 20), (9, 20), (8, 14), (8, 13))  # calls of all ranks, and of the context group
    counts = [{ALL: all_, groups[r // 2]: own} for r, (all_, own) in enumerate(pairs)]
    beats = [(t, [beat(r, t, collectives=counts[r]) for r in range(4)]) for t in range(1, 52, 5)]
    assert observe(*beats).finding(51).kind == "slow 3"
    for r, count in enumerate(counts):
        count.update({ALL: 9, groups[r // 2]: 20 - r // 2})
    beats = [(t, [beat(r, t, collectives=counts[r]) for r in range(4)]) for t in range(1, 52, 5)]
    assert observe(*beats).finding(51) is None


def test_a_machine_without_a_sign_of_life_ends_the_run_within_a_minute():
    beats = [(t, [beat(r, t) for r in (0, 1)]) for t in range(1, 60, 5)]
    found = observe((0, [beat(r) for r in range(4)]), *beats)
    within = next(now for now in range(0, 100) if (f := found.finding(now)) and f.fatal)
    assert within < MINUTE
    assert "no sign of life from rank 2 (process 102 on node-1)" in found.finding(within).text


@pytest.mark.parametrize(
    ("state", "fatal", "words"),
    [
        (GONE, True, "was ended from outside in phase update"),
        (STOPPED, False, "is stopped (SIGSTOP)"),
        (ALIVE, False, "though its process runs"),
    ],
)
def test_a_neighbour_tells_the_state_of_a_silent_rank(state, fatal, words):
    """Rank 2 beats on the machine of rank 3, which does not."""
    told = beat(2, 9, states={"3": state})
    found = observe((0, [beat(3), beat(2)]), (50, [told]))
    finding = found.finding(51)
    assert finding.fatal == fatal
    assert words in finding.text


def test_an_error_is_passed_on():
    failed = beat(3, outcome=FAILED, error="rows.jsonl:3: no text")
    finding = observe((0, [beat(1), failed])).finding(1)
    assert finding.fatal
    assert finding.text.startswith("rank 3 (process 103 on node-1) failed in phase update")
    assert finding.text.endswith("rows.jsonl:3: no text")


def test_a_rank_that_left_early_ends_the_run_but_not_at_the_common_end():
    left = beat(1, outcome=DONE, calls=7)
    waits = beat(0, calls=8)
    beats = [(t, [left, replace(waits, number=t)]) for t in range(1, 60, 5)]
    finding = observe(*beats).finding(MINUTE)
    assert (finding.fatal, finding.kind) == (True, "left 1")
    saves = beat(0, calls=7)  # rank 0 writes the result; no one waits for rank 1
    assert (
        observe(*[(t, [left, replace(saves, number=t)]) for t in range(1, 600, 5)]).finding(600)
        is None
    )


def test_times_count_anew_after_this_process_was_stopped():
    found = observe((0, [beat(2), beat(3)]))
    found.forget_times(1000)
    assert found.finding(1010) is None
    assert found.finding(1050).fatal


def test_a_beat_says_what_this_process_does():
    own = own_beat(3, 1)
    assert read_beat(own.to_json()) == own
    assert (own.pid, own.space) == (os.getpid(), process_space())


def test_counts_of_collective_calls_stand_after_the_group_was_destroyed():
    init_process_group(HashStore(), 0, 1, 0)
    dist.all_reduce(torch.ones(1))
    before = own_beat(0, 1).collectives
    assert list(before) == [ALL]
    assert before[ALL] > 0
    destroy_process_group()
    assert own_beat(0, 2).collectives == before


def test_a_beat_names_the_line_of_the_main_thread():
    with ThreadPoolExecutor(1) as threads:
        place = threads.submit(main_thread_place).result()
    assert main_thread_place() == ""
    assert re.fullmatch(r"\w+\.py:\d+ in \w+", place)


def test_the_state_of_a_process():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert process_state(child.pid) == ALIVE
        child.kill()
    assert process_state(child.pid) == GONE
