"""Rollouts ahead of the updates: their prompts, their weights, hand-overs, failures and resume."""

import json
import threading
from itertools import chain
from types import SimpleNamespace

import pytest

from rlhf_cli.data.config import DataConfig
from rlhf_cli.distributed.ranks import SINGLE_PROCESS
from rlhf_cli.errors import InferenceServerError, RankFailed
from rlhf_cli.rollout.response import Response
from rlhf_cli.stages.rollouts.pipeline import RolloutPipeline
from rlhf_cli.stages.rollouts.worker import RolloutWorker
from tests.thread_ranks import on_ranks

PROMPTS = [[10 + k] for k in range(10)]
BATCH, SAMPLES, STEPS = 4, 2, 8  # an epoch has 4, 4 and 2 prompts
TOKENIZER = SimpleNamespace(pad_token_id=0, decode=lambda tokens, **_: f"text {tokens}")
LAGS = [0, 1, 3]


class StubEngine:
    """Responses that tell their prompt, its number, their sample and their weights.

    Attributes:
        events: `hand_over` with its version, and `generate` with the step of its prompts.
        failures: steps of which a rollout fails, once for each time that one is listed.
        gates: step -> what its rollout waits for.
        most_in_flight: rollouts in flight during a hand-over.
    """

    def __init__(self, failures=(), gates=None):
        self.events, self.failures, self.gates = [], list(failures), gates or {}
        self.version, self.in_flight, self.most_in_flight = None, 0, 0

    def hand_over(self, version):
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        if version != self.version:
            self.events.append(("hand_over", version))
        self.version = version

    def generate(self, prompts, *, samples, prompt_numbers, logprobs=False):
        version, step = self.version, prompt_numbers[0] // BATCH if prompt_numbers else None
        assert version is not None
        self.in_flight += 1
        self.events.append(("generate", step))
        if step in self.gates:
            assert self.gates[step].wait(20)
        self.in_flight -= 1
        if step in self.failures:
            self.failures.remove(step)
            raise InferenceServerError(f"step {step}")
        return [
            Response(
                index=place * samples + sample,
                prompt_index=place,
                prompt_ids=prompt,
                token_ids=[prompt[0], number, sample, version],
                finished=bool(sample),
                logprobs=[-0.1 * number, -1 / 3, -1e-7, -2.0],
                weights_version=version,
            )
            for place, (prompt, number) in enumerate(zip(prompts, prompt_numbers, strict=True))
            for sample in range(samples)
        ]


def pipeline_of(lag=0, engine=None, ranks=SINGLE_PROCESS, steps=STEPS):
    worker = RolloutWorker(
        (PROMPTS, PROMPTS),
        engine or StubEngine(),
        TOKENIZER,
        [0],
        samples=SAMPLES,
        batch_size=BATCH,
    )
    train = SimpleNamespace(batch_size=BATCH, epochs=1, max_steps=steps)
    cfg = SimpleNamespace(data=DataConfig(), train=train, seed=3)
    return RolloutPipeline(worker, cfg, ranks, lag=lag)


def take(pipeline, count=STEPS):
    """The next rollouts, each finished; fewer at the end of the run."""
    found = []
    while len(found) < count and (rollout := pipeline.next_rollout()) is not None:
        found.append(rollout)
        pipeline.finish()
    return found


def prompts_of(rollouts):
    return [[*one.prompts] for one in rollouts]


def contents(rollouts):
    """Everything of the responses of each rollout."""
    return [[vars(response) for response in one.responses] for one in rollouts]


@pytest.fixture(scope="module")
def expected():
    """Prompts of each step."""
    return prompts_of(take(pipeline_of()))


def test_the_order_is_that_of_the_sampler(expected):
    assert [len(step) for step in expected] == [4, 4, 2] * 2 + [4, 4]
    for epoch in (expected[:3], expected[3:6]):
        assert sorted(chain(*epoch)) == [*range(10)]
    assert expected[:3] != expected[3:6]


@pytest.mark.parametrize("lag", LAGS)
def test_a_lag_changes_the_age_of_the_weights_and_nothing_else(lag, expected):
    found = take(pipeline_of(lag))
    assert prompts_of(found) == expected
    assert [one.step for one in found] == [*range(1, STEPS + 1)]
    for one in found:
        assert [response.index for response in one.responses] == [*range(len(one.prompts) * 2)]
        wanted = [[10 + k, one.step * BATCH + place] for place, k in enumerate(one.prompts)]
        asked = [response.token_ids[:2] for response in one.responses[::SAMPLES]]
        assert asked == wanted
    ages = [{one.step - 1 - r.weights_version for r in one.responses} for one in found]
    assert ages[0] == {0}
    assert all(max(of) <= min(lag, k) for k, of in enumerate(ages))
    if lag < 2:  # with more, a rollout may begin after later hand-overs
        assert ages == [{min(lag, k)} for k in range(STEPS)]


@pytest.mark.parametrize("lag", LAGS)
def test_weights_are_handed_over_before_each_rollout_that_is_asked_for(lag):
    engine = StubEngine()
    take(pipeline_of(lag, engine))
    given = [event[1] for event in engine.events if event[0] == "hand_over"]
    assert given == [*range(STEPS)]  # not after the last update, which no rollout follows
    if lag == 0:
        pairs = [(("hand_over", k), ("generate", k + 1)) for k in range(STEPS)]
        assert engine.events == [event for pair in pairs for event in pair]
    assert sorted(event[1] for event in engine.events if event[0] == "generate") == [
        *range(1, STEPS + 1)
    ]


def test_the_next_rollout_is_generated_while_the_caller_trains_and_complete_at_a_hand_over():
    gates = {step: threading.Event() for step in range(2, STEPS + 1)}
    engine = StubEngine(gates=gates)
    pipeline = pipeline_of(1, engine)
    for step in range(1, STEPS + 1):
        rollout = pipeline.next_rollout()
        assert rollout.step == step
        if step < STEPS:
            assert not gates[step + 1].is_set()  # it is in flight, and nothing waits for it
            gates[step + 1].set()
        pipeline.finish()
    assert engine.most_in_flight == 0


def test_a_rollout_stays_the_next_one_until_it_is_finished():
    engine = StubEngine()
    pipeline = pipeline_of(0, engine)
    first = pipeline.next_rollout()
    assert pipeline.next_rollout() == first
    assert (pipeline.step, engine.events.count(("generate", 1))) == (0, 1)
    pipeline.finish()
    assert pipeline.step == 1
    assert pipeline.next_rollout().step == 2
    assert take(pipeline)[-1].step == STEPS
    assert pipeline.next_rollout() is None


@pytest.mark.parametrize("lag", LAGS)
@pytest.mark.parametrize("failing", [1, 3, 8])
def test_a_rollout_that_fails_is_asked_for_again(lag, failing, expected):
    pipeline = pipeline_of(lag, StubEngine([failing, failing]))
    found = take(pipeline, failing - 1)
    for _ in range(2):
        with pytest.raises(InferenceServerError, match=f"step {failing}"):
            pipeline.next_rollout()
        assert pipeline.step == failing - 1
    found += take(pipeline)
    assert prompts_of(found) == expected
    assert all(len(one.responses) == SAMPLES * len(one.prompts) for one in found)


def stored(pipeline):
    """The state as a checkpoint returns it."""
    return json.loads(json.dumps(pipeline.state_dict()))


@pytest.mark.parametrize("lag", LAGS)
@pytest.mark.parametrize("stop", range(STEPS + 1))
def test_a_resumed_run_loses_no_prompt_and_repeats_none(lag, stop, expected):
    first = pipeline_of(lag)
    found = take(first, stop)
    state = stored(first)
    assert len(state["ahead"]) == (min(lag, STEPS - stop) if stop else 0)
    engine = StubEngine()
    second = pipeline_of(lag, engine)
    second.load_state_dict(state)
    rest = take(second)
    assert prompts_of([*found, *rest]) == expected
    unbroken = take(first)
    same = len(unbroken) if lag < 2 else len(state["ahead"])
    assert contents(rest[:same]) == contents(unbroken[:same])  # token for token
    if stop < STEPS:
        assert engine.events[0] == ("hand_over", stop)
    asked = {event[1] for event in engine.events if event[0] == "generate"}
    assert asked == {*range(stop + 1 + len(state["ahead"]), STEPS + 1)}


@pytest.mark.parametrize("lag", LAGS)
def test_a_rollout_that_was_not_trained_on_is_stored_and_is_the_next(lag):
    first = pipeline_of(lag)
    take(first, 2)
    rollout = first.next_rollout()  # and the server fails before its update
    engine = StubEngine()
    second = pipeline_of(lag, engine)
    second.load_state_dict(stored(first))
    assert contents([second.next_rollout()]) == contents([rollout])
    assert ("generate", 3) not in engine.events


@pytest.mark.parametrize("lag", [1, 3])
def test_a_rollout_that_failed_is_stored_without_responses_and_generated_after_a_resume(
    lag, expected
):
    first = pipeline_of(lag, StubEngine([3]))
    found = take(first, 2)
    state = stored(first)
    assert [one["responses"] is None for one in state["ahead"]] == [True, *[False] * (lag - 1)]
    second = pipeline_of(lag)
    second.load_state_dict(state)
    rest = take(second)
    assert prompts_of([*found, *rest]) == expected
    assert {one.weights_version for one in rest[0].responses} == {2}


def test_a_checkpoint_of_a_run_without_rollouts_ahead_can_be_continued(expected):
    first = pipeline_of()
    take(first, 3)
    second = pipeline_of()
    second.load_state_dict({"order": stored(first)["order"]})
    assert second.step == 3
    assert prompts_of(take(second)) == expected[3:]


def test_steps_after_the_last_are_not_trained_on():
    """As where a run is continued with fewer `max_steps`."""
    first = pipeline_of(3)
    take(first, 2)
    second = pipeline_of(3, steps=3)
    second.load_state_dict(stored(first))
    assert [one.step for one in take(second)] == [3]


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize(("before", "after"), [(1, 3), (2, 1), (3, 2)])
def test_a_run_goes_on_with_another_number_of_ranks(lag, before, after, expected):
    """Also where a rank has no prompt of a step, and with the same responses."""

    def begin(ranks):
        pipeline = pipeline_of(lag, ranks=ranks)
        take(pipeline, 2)
        state = stored(pipeline)
        return state, contents(take(pipeline))

    def go_on(ranks):
        pipeline = pipeline_of(lag, ranks=ranks)
        pipeline.load_state_dict(state)
        return contents(take(pipeline))

    (state, _), *others = begun = on_ranks(before, begin)
    assert all(other == state for other, _ in others)
    assert joined([found for _, found in begun]) == joined(on_ranks(after, go_on))


def joined(by_rank):
    """The responses of all ranks, step by step."""
    return [[*chain(*parts)] for parts in zip(*by_rank, strict=True)]


@pytest.mark.parametrize("lag", LAGS)
def test_where_a_rank_fails_all_do_and_all_ask_again(lag, expected):
    def act(ranks):
        pipeline = pipeline_of(lag, StubEngine([2] if ranks.rank == 1 else []), ranks)
        found = take(pipeline, 1)
        with pytest.raises((InferenceServerError, RankFailed)) as caught:
            pipeline.next_rollout()
        assert stored(pipeline)["step"] == 1
        return caught.type, prompts_of([*found, *take(pipeline)])

    (first, found), (second, other) = on_ranks(2, act)
    assert (first, second) == (RankFailed, InferenceServerError)
    assert found == other == expected


def test_where_a_hand_over_fails_on_a_rank_no_rank_asks_for_a_rollout():
    class Refusing(StubEngine):
        def hand_over(self, version):
            raise InferenceServerError("no")

    def act(ranks):
        engine = Refusing() if ranks.rank == 0 else StubEngine()
        with pytest.raises((InferenceServerError, RankFailed)):
            pipeline_of(1, engine, ranks).next_rollout()
        return engine.events

    assert on_ranks(2, act) == [[], [("hand_over", 0)]]


@pytest.mark.parametrize("lag", LAGS)
def test_weights_for_an_evaluation_wait_for_the_rollouts_in_flight(lag):
    engine = StubEngine()
    pipeline = pipeline_of(lag, engine)
    take(pipeline, 2)
    pipeline.hand_over()
    assert engine.events[-1] == ("hand_over", 2)
    assert engine.in_flight == 0
    assert prompts_of(take(pipeline))[0] == [*pipeline_of().order.epoch_order(0)[8:]]
