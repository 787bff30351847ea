"""Elo ratings: a score for each item, from comparisons of two at a time (Elo 1978).

A rating depends on the order of the games, and comparisons have none. So the score is the mean
over orders, and the uncertainty says how much it would differ had the raters compared anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from math import factorial

import numpy as np
from numpy.typing import NDArray

K = 32.0
"""Points that a game moves at most."""

START = 1500.0
SCALE = 400.0
"""Points of difference at which the better item wins ten times as often as it loses."""

ORDERS = 1000
"""A score is the mean over so many orders of the games, or over all: up to six games have fewer."""

RESAMPLES = 1000
SEED = 0
TIE = -1

Games = NDArray[np.int64]
"""[G, 3]: one item, another, and which of the two won, or -1 for a tie."""

Ratings = NDArray[np.float64]


@dataclass(frozen=True)
class EloRatings:
    """What the games say of each item.

    Attributes:
        scores: [items], points.
        games: [items], in how many each took part.
        uncertainty: [items], points; 0 where there were no games.
    """

    scores: Ratings
    games: NDArray[np.int64]
    uncertainty: Ratings


def rate_items(items: int, games: Games) -> EloRatings:
    """Rate items by their games.

    Args:
        items: number of items.
        games: at least one.

    Returns:
        Scores: the mean over orders of the games. Uncertainty: the standard deviation over
        `RESAMPLES` seeded draws, with repetition and in any order, of as many games (bootstrap).
        With few games it is too small: a draw has only the games that were played.
    """
    draw = np.random.default_rng(SEED)
    resamples = draw.integers(len(games), size=(RESAMPLES, len(games)))
    return EloRatings(
        scores=play(items, games, _orders(len(games), draw)).mean(axis=0),
        games=np.bincount(games[:, :2].ravel(), minlength=items),
        uncertainty=play(items, games, resamples).std(axis=0),
    )


def _orders(games: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """[O, G]: all orders of the games, or `ORDERS` of them."""
    if games < ORDERS and factorial(games) <= ORDERS:
        return np.array(list(permutations(range(games))))
    return draw.permuted(np.tile(np.arange(games), (ORDERS, 1)), axis=1)


def play(items: int, games: Games, orders: NDArray[np.int64]) -> Ratings:
    """Ratings after all games, for each of several orders.

    Args:
        items: number of items; all begin with `START` points.
        games: as in `rate`.
        orders: [O, G], indices of the games, first to last.

    Returns:
        [O, items], points. Their sum stays as it was at the start.
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
    """What share of the games an item wins against another; a tie counts half."""
    share: Ratings = 1 / (1 + 10 ** ((other - rating) / SCALE))
    return share
