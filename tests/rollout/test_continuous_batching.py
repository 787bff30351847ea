"""The scheduler's slots and copies, with a cache that is a list of tokens."""

import random

import pytest

from rlhf_cli.rollout.continuous_batching import PREFILL_TOKENS, Scheduler
from rlhf_cli.rollout.response import Response


def play(rows, slots, ends_after):
    """Run a scheduler on slots that hold the tokens themselves; check every slot each step."""
    scheduler = Scheduler(rows, slots)
    held = [[] for _ in range(slots)]
    computed = 0
    step = scheduler.step()
    while scheduler.active:
        width = 1 + max(row.last_position for row in scheduler.active)
        held = [tokens[:width] for tokens in held]  # as the cache's memory is laid out
        for source, target, length in step.copies:
            held[target][:length] = held[source][:length]
        for prefix, targets in step.prefills:
            computed += len(prefix)
            for slot in targets:
                held[slot][: len(prefix)] = list(prefix)
        for slot, row in enumerate(scheduler.active):
            held[slot][row.last_position :] = [row.last_token]
            assert held[slot] == [*row.prompt_ids, *row.token_ids]
            row.token_ids.append(1000 + row.index)
        step = scheduler.step(
            [
                s
                for s, row in enumerate(scheduler.active)
                if len(row.token_ids) == ends_after[row.index]
            ]
        )
    return computed


@pytest.mark.parametrize("seed", range(20))
def test_every_response_has_its_tokens_in_its_slot(seed):
    chance = random.Random(seed)
    samples, prompts = chance.choice([1, 2, 5]), chance.randint(1, 12)
    texts = [[chance.randrange(97) for _ in range(chance.randint(1, 9))] for _ in range(prompts)]
    rows = [Response(p * samples + s, p, texts[p]) for p in range(prompts) for s in range(samples)]
    ends_after = [chance.randint(1, 8) for _ in rows]
    play(rows, chance.randint(1, len(rows)), ends_after)
    assert [len(row.token_ids) for row in rows] == ends_after


def test_samples_that_enter_later_copy_the_prompt_from_a_slot():
    rows = [Response(n, 0, range(11)) for n in range(9)]
    assert play(rows, 2, [3, 1, 2, 4, 1, 1, 5, 2, 2]) == 10


def test_a_step_takes_no_more_prompts_above_prefill_tokens():
    rows = [Response(n, n, range(PREFILL_TOKENS // 2 + 1)) for n in range(4)]
    scheduler = Scheduler(rows, 4)
    assert len(scheduler.step().prefills) == 2
    assert len(scheduler.step().prefills) == 2
    assert len(scheduler.active) == 4
