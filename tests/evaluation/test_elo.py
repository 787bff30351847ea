"""Elo by hand, with K 32, start 1500 and logistic 400."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_cli.evaluation.elo import TIE, expected, play, rate_items


def scores(items, *games):
    return rate_items(items, np.array(games)).scores.tolist()


def test_one_game_between_equals_moves_16_points():
    assert scores(2, (0, 1, 0)) == [1516, 1484]
    assert scores(2, (0, 1, 1)) == [1484, 1516]
    assert scores(2, (1, 0, 1)) == [1484, 1516]


def test_a_tie_between_equals_moves_nothing():
    assert scores(3, (0, 1, TIE)) == [1500, 1500, 1500]


def test_a_second_win_counts_less():
    # the winner of the first game is expected to win 1 / (1 + 10^(-32/400)) = 0.5459217
    assert scores(2, (0, 1, 0), (0, 1, 0)) == pytest.approx([1530.5305, 1469.4695], abs=1e-4)


def test_a_tie_after_a_win_gives_half_a_point():
    # after 1516 to 1484: 32 * (0.5 - 0.5459217) = -1.4695; before it, the tie moves nothing
    after, before = 1516 - 1.4695, 1516
    assert scores(2, (0, 1, 0), (0, 1, TIE))[0] == pytest.approx((after + before) / 2, abs=1e-4)


def test_the_order_of_the_games_matters_to_one_rating_and_not_to_the_mean():
    games = np.array([(0, 1, 0), (1, 2, 1)])
    first, second = play(3, games, np.array([[0, 1], [1, 0]]))
    assert first != pytest.approx(second)
    assert scores(3, *games) == pytest.approx((first + second) / 2)
    assert scores(3, *games) == pytest.approx(scores(3, *games[::-1]))


def test_a_circle_is_a_tie():
    circle = scores(3, (0, 1, 0), (1, 2, 1), (2, 0, 2))
    assert circle == pytest.approx([1500, 1500, 1500])


def test_400_points_are_ten_wins_to_one_loss():
    assert expected(np.array(1900.0), np.array(1500.0)) == pytest.approx(10 / 11)


def test_uncertainty_is_larger_where_the_games_disagree_and_none_without_games():
    agreed = rate_items(3, np.array([(0, 1, 0)] * 4))
    split = rate_items(3, np.array([(0, 1, 0), (0, 1, 1)] * 2))
    assert agreed.uncertainty == pytest.approx([0, 0, 0], abs=1e-6)  # rounding of 1500
    assert split.uncertainty[0] > 5
    assert split.uncertainty[2] == 0
    assert agreed.games.tolist() == [4, 4, 0]


GAMES = st.integers(2, 5).flatmap(
    lambda items: st.tuples(
        st.just(items),
        st.lists(
            st.permutations(range(items)).flatmap(
                lambda p: st.sampled_from([(p[0], p[1], w) for w in (p[0], p[1], TIE)])
            ),
            min_size=1,
            max_size=8,
        ),
    )
)


@given(GAMES)
def test_points_are_only_passed_on_and_runs_repeat(drawn):
    items, games = drawn
    rated = rate_items(items, np.array(games))
    assert rated.scores.sum() == pytest.approx(1500 * items)
    assert rated.games.sum() == 2 * len(games)
    again = rate_items(items, np.array(games))
    assert (again.scores == rated.scores).all()
    assert (again.uncertainty == rated.uncertainty).all()
    swapped = rate_items(items, np.array([(j, i, winner) for i, j, winner in games]))
    assert swapped.scores == pytest.approx(rated.scores)
