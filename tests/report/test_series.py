import math
import random

from rlhf_cli.report.axes import make_axis, nice_step, shown_range
from rlhf_cli.report.series import Series, extreme_indices, moving_average, read_series
from rlhf_cli.report.text import show_number, show_seconds, show_tick


def test_series_have_the_steps_of_their_own_lines():
    lines = [{"step": 0, "eval/a": 1.0}, {"step": 1, "b": 2.0}, {"step": 2, "b": 3.0, "eval/a": 4}]
    found = read_series(lines)
    assert {name: (list(s.steps), list(s.values)) for name, s in found.items()} == {
        "eval/a": ([0, 2], [1.0, 4]),
        "b": ([1, 2], [2.0, 3.0]),
    }


def test_steps_that_go_back_are_put_in_order():
    [series] = read_series([{"step": 2, "a": 2.0}, {"step": 1, "a": 1.0}]).values()
    assert (series.steps, series.values) == ([1, 2], [1.0, 2.0])


def test_values_that_are_not_finite_are_known_by_their_steps():
    series = Series([1, 2, 3, 4, 5], [1.0, math.nan, math.inf, 10**400, 2.0])
    assert series.finite.values == [1.0, 2.0]
    assert series.lost == [2, 3, 4]


def test_moving_average():
    assert moving_average([1.0, 2.0, 6.0, 4.0], 1) == [1.5, 3.0, 4.0, 5.0]


def test_thinning_keeps_the_ends_and_each_extreme():
    values = [random.Random(0).random() for _ in range(10_000)]
    values[1234], values[8765] = 50.0, -50.0
    series = Series(list(range(10_000)), values).thinned(100)
    assert len(series) <= 102
    assert series.steps[0] == 0
    assert series.steps[-1] == 9999
    assert {50.0, -50.0} < {*series.values}


def test_extremes_of_stretches():
    assert extreme_indices([3, 1, 2, 9, 8, 7], 2) == [0, 1, 3, 5]


def test_a_spike_does_not_flatten_the_axis():
    values = [1.0 + 0.01 * (k % 10) for k in range(200)]
    low, high = shown_range([*values, 1e6])
    assert low == 1.0
    assert high < 2
    assert shown_range([1.0, 1e6]) == (1.0, 1e6)


def test_ticks_are_round_numbers():
    assert nice_step(1.0, 5) == 0.2
    assert make_axis(0.13, 0.87, 0, 1).labels == ("0", "0.2", "0.4", "0.6", "0.8", "1.0")
    assert make_axis(1, 30, 0, 1, whole=True, tight=True, most=6).ticks == (5, 10, 15, 20, 25, 30)
    assert make_axis(0, 1e-4, 0, 1, most=2).labels == ("0", "5e−5", "1e−4")


def test_an_axis_of_one_value_has_a_width():
    for value in (0.0, 5.0, -1e-9, 1e12, 1e140):
        axis = make_axis(value, value, 0.0, 100.0)
        assert axis.low < axis.high
        assert 0 <= axis.place(value) <= 100


def test_numbers():
    shown = {0.123456: "0.123", 5.0: "5", 1234.5: "1,234", -0.5: "−0.500", 2.5e-7: "2.50e−7"}
    assert {value: show_number(value) for value in shown} == shown
    assert show_number(math.nan) == "–"
    assert show_number(math.inf) == "∞"
    assert show_number(0.984, "share") == "98.4 %"
    assert show_number(1.5e9, "bytes") == "1.5 GB"
    assert show_tick(20_000, 10_000) == "20k"
    assert show_seconds(3725) == "1 h 2 min"
    assert show_seconds(2.5) == "2.5 s"
