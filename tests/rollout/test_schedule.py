"""Who is in which slot, and what is copied, with a cache that is a list of tokens."""

import random

import pytest

from rlhf_cli.rollout.schedule import PROMPT_TOKENS, Row, Schedule


def play(rows, slots, ends_after):
    """Run a schedule on slots that hold the tokens themselves; look at every slot each turn."""
    schedule = Schedule(rows, slots)
    held = [[] for _ in range(slots)]
    computed = 0
    turn = schedule.turn()
    while schedule.live:
        width = 1 + max(row.position for row in schedule.live)
        held = [tokens[:width] for tokens in held]  # as the cache's memory is laid out
        for source, target, length in turn.copies:
            held[target][:length] = held[source][:length]
        for prefix, targets in turn.prompts:
            computed += len(prefix)
            for slot in targets:
                held[slot][: len(prefix)] = list(prefix)
        for slot, row in enumerate(schedule.live):
            held[slot][row.position :] = [row.last]
            assert held[slot] == [*row.before, *row.written]
            row.written.append(1000 + row.number)
        turn = schedule.turn(
            [s for s, row in enumerate(schedule.live) if len(row.written) == ends_after[row.number]]
        )
    return computed


@pytest.mark.parametrize("seed", range(20))
def test_every_row_finds_its_tokens_in_its_slot(seed):
    chance = random.Random(seed)
    samples, prompts = chance.choice([1, 2, 5]), chance.randint(1, 12)
    texts = [[chance.randrange(97) for _ in range(chance.randint(1, 9))] for _ in range(prompts)]
    rows = [Row(p * samples + s, p, texts[p]) for p in range(prompts) for s in range(samples)]
    ends_after = [chance.randint(1, 8) for _ in rows]
    play(rows, chance.randint(1, len(rows)), ends_after)
    assert [len(row.written) for row in rows] == ends_after


def test_samples_that_enter_later_take_the_prompt_from_a_slot():
    rows = [Row(n, 0, range(11)) for n in range(9)]
    assert play(rows, 2, [3, 1, 2, 4, 1, 1, 5, 2, 2]) == 10


def test_a_pass_takes_no_more_prompts_when_it_has_many_tokens():
    rows = [Row(n, n, range(PROMPT_TOKENS // 2 + 1)) for n in range(4)]
    schedule = Schedule(rows, 4)
    assert len(schedule.turn().prompts) == 2
    assert len(schedule.turn().prompts) == 2
    assert len(schedule.live) == 4
