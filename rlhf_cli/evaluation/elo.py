"""Elo ratings of items from pairwise comparisons (Elo 1978).

A rating depends on the order of the games, and comparisons have no order. The score is therefore
the mean over orders; the uncertainty is the standard deviation over bootstrap samples of the games.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from math import factorial

import numpy as np
from numpy.typing import NDArray

K = 32.0
"""Maximum change of a rating by one game, in points."""

START = 1500.0
SCALE = 400.0
"""Difference in points at which the odds of the better item are 10 to 1."""

ORDERS = 1000
"""Number of orders that a score is the mean over; up to six games have fewer, and all are used."""

RESAMPLES = 1000
SEED = 0
TIE = -1

Games = NDArray[np.int64]
"""[G, 3]: two items and the winner of the two, or -1 for a tie."""

Ratings = NDArray[np.float64]


@dataclass(frozen=True)
class EloRatings:
    """Ratings of all items.

    Attributes:
        scores: [items], points.
        games: [items], number of games of each item.
        uncertainty: [items], points; 0 for items without games.
    """

    scores: Ratings
    games: NDArray[np.int64]
    uncertainty: Ratings


def rate_items(items: int, games: Games) -> EloRatings:
    """Rate items by their games.

    Args:
        items: number of items.
        games: at least one game.

    Returns:
        Scores are means over orders of the games. Uncertainties are standard deviations over
        `RESAMPLES` seeded bootstrap samples of the games, in random order. With few games they are
        too small, because a sample has only the games that were played.
    """
    draw = np.random.default_rng(SEED)
    resamples = draw.integers(len(games), size=(RESAMPLES, len(games)))
    return EloRatings(
        scores=play(items, games, _orders(len(games), draw)).mean(axis=0),
        games=np.bincount(games[:, :2].ravel(), minlength=items),
        uncertainty=play(items, games, resamples).std(axis=0),
    )


def _orders(games: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """[O, G]: all orders of the games, or `ORDERS` random ones."""
    if games < ORDERS and factorial(games) <= ORDERS:
        return np.array(list(permutations(range(games))))
    return draw.permuted(np.tile(np.arange(games), (ORDERS, 1)), axis=1)


def play(items: int, games: Games, orders: NDArray[np.int64]) -> Ratings:
    """Compute the ratings after all games, for each of several orders.

    Args:
        items: number of items; all begin with `START` points.
        games: at least one game.
        orders: [O, G], indices of the games, first to last.

    Returns:
        [O, items], points. Their sum is constant.
    """
    ratings = np.full((len(orders), items), START)
    every = np.arange(len(orders))
    one, other, winner = games.T
    result = np.where(winner == TIE, 0.5, winner == one)
    for game in orders.T:
        a, b = one[game], other[game]
        gain = K * (result[game] - expected(ratings[every, a], ratings[every, b]))
        ratings[every, a] += gain
        ratings[every, b] -= gain
    return ratings


def expected(rating: Ratings, other: Ratings) -> Ratings:
    """Return the expected share of games that an item wins; a tie counts half."""
    share: Ratings = 1 / (1 + 10 ** ((other - rating) / SCALE))
    return share
