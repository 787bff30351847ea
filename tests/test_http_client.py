"""Calls that are made at once."""

import threading

import pytest

from rlhf_cli.http_client import run_concurrently


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("limit", [1, 3, 9])
def test_results_are_in_the_order_of_the_items(limit, in_order):
    found = run_concurrently(lambda item: -item, range(9), limit, in_order=in_order)
    assert found == [-item for item in range(9)]
    assert run_concurrently(str, [], limit, in_order=in_order) == []


@pytest.mark.parametrize(("in_order", "named"), [(True, 0), (False, 1)])
def test_which_of_several_failures_is_raised(in_order, named):
    """The second call fails first; no third call begins."""
    begun, second, raised = [], threading.Event(), threading.Event()

    def call(item):
        begun.append(item)
        if item == 0:
            assert second.wait(10)
            if not in_order:
                raised.wait(10)
        else:
            second.set()
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match=f"item {named}"):
        run_concurrently(call, range(8), 2, in_order=in_order)
    raised.set()
    assert sorted(begun) == [0, 1]


@pytest.mark.parametrize("in_order", [False, True])
def test_a_later_call_that_hangs_is_not_waited_for(in_order):
    release = threading.Event()

    def call(item):
        if item == 0:
            raise ValueError(item)
        release.wait(10)

    with pytest.raises(ValueError, match="0"):
        run_concurrently(call, range(2), 2, in_order=in_order)
    release.set()
