"""Sudden losses: found, recorded with their rows, and kept over a resume."""

import json

import pytest

from rlhf_cli.distributed.ranks import SINGLE_PROCESS
from rlhf_cli.train.spikes import MIN_STEPS, WINDOW, SpikeLog
from tests.helpers import random_rows


def locate(rows):
    return f"a.jsonl:{rows.example_ids[0]}"


def len_of(rows):
    return float(len(rows.tokens))


def make_log(folder):
    return SpikeLog(folder, locate, len_of, SINGLE_PROCESS)


def calm(step):
    return 2.0 + 0.1 * ((step * 7919) % 10) / 10


def feed(log, losses, first=1):
    batches = [random_rows([4, 5])]
    return [log.check(first + k, loss, batches) for k, loss in enumerate(losses)]


def test_a_sudden_loss_is_recorded_with_all_rows_of_the_step(tmp_path):
    log = make_log(tmp_path)
    found = feed(log, [*map(calm, range(MIN_STEPS)), 9.0, 2.0])
    assert found == [False] * MIN_STEPS + [True, False]
    [line] = (tmp_path / "spikes.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["step"], record["loss"]) == (MIN_STEPS + 1, 9.0)
    assert record["before"] == pytest.approx(2.0, abs=0.1)
    assert record["rows"] == ["a.jsonl:1", "a.jsonl:0"], "the highest loss first"
    assert record["losses"] == [5.0, 4.0]


@pytest.mark.parametrize(
    "losses",
    [
        [calm(step) for step in range(80)],
        [9.0 / step for step in range(1, 80)],
        [calm(step) * (1 + step / 40) for step in range(80)],
        [1.0 + (step * 7919 % 100) / 50 for step in range(80)],
        [2.0, 1.0, *[0.001 * (1 + step % 5) for step in range(60)]],
    ],
)
def test_falling_rising_and_noisy_losses_are_none(tmp_path, losses):
    assert not any(feed(make_log(tmp_path), losses))
    assert not (tmp_path / "spikes.jsonl").exists()


def test_a_rise_before_there_is_anything_to_compare_with_is_none(tmp_path):
    assert feed(make_log(tmp_path), [2.0, 2.0, 50.0]) == [False] * 3


def test_it_continues_from_its_state(tmp_path):
    losses = [*map(calm, range(20)), 9.0]
    whole = feed(make_log(tmp_path), losses)
    first = make_log(tmp_path)
    feed(first, losses[:10])
    second = make_log(tmp_path)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert feed(second, losses[10:], first=11) == whole[10:]
    assert len(second.recent) <= WINDOW


def test_records_after_the_checkpoint_are_removed(tmp_path):
    (tmp_path / "spikes.jsonl").write_text('{"step": 3, "rows": []}\n{"step": 9, "rows": []}\n')
    make_log(tmp_path).truncate(5)
    assert (tmp_path / "spikes.jsonl").read_text() == '{"step": 3, "rows": []}\n'


def test_a_checkpoint_of_an_older_version_has_no_state(tmp_path):
    log = make_log(tmp_path)
    log.load_state_dict({})
    assert log.recent == []
