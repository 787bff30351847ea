"""Near duplicates among texts: MinHash signatures of word 5-grams and locality-sensitive hashing.

Signatures follow Broder 1997 (On the resemblance and containment of documents), the bands follow
Leskovec, Rajaraman and Ullman 2014 (Mining of Massive Datasets, section 3.4). Candidates are
compared exactly, so a reported pair is similar; a similar pair is missed with a small probability.
"""

from __future__ import annotations

import re
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

SHINGLE = 5
"""Words of a shingle."""

MIN_WORDS = 20
"""Words of a text from which on similar texts are looked for; shorter ones need to be equal."""

MAX_WORDS = 2000
"""Words of a text that are compared."""

SIMILARITY = 0.8
"""Jaccard similarity of the shingles from which on two texts are near duplicates."""

LONG_WORDS, SHORT_SIMILARITY = 50, 0.9
"""Words of a longer text, and the similarity of shorter ones: in those one word is a large part."""

BANDS, BAND_ROWS = 25, 5
"""A pair of similarity s becomes a candidate with probability 1 - (1 - s^5)^25: 0.9999 at 0.8."""

_PUNCTUATION = re.compile(r"[.,;:!?…]+(?=\s|$)")
_QUOTES = str.maketrans("‘’“”", "''\"\"")

_HASH_BITS = np.uint64(40)
"""Bits of a shingle's hash; the upper bits of a sort key hold the number of its text."""

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+")
"""A word, or one character of a script without spaces."""


def normalize(text: str) -> str:
    """Return the words of a text in lower case, separated by single spaces."""
    return " ".join(_WORD.findall(text.casefold()))


def simplify(text: str) -> str:
    """Return a text in lower case without sentence punctuation and with single spaces.

    Other signs stay: two short commands may differ in one of them.
    """
    return " ".join(_PUNCTUATION.sub("", text.casefold().translate(_QUOTES)).split())


@dataclass(frozen=True)
class Shingles:
    """Sets of shingles of several texts in one array.

    Attributes:
        hashes: [N] uint64, hashes of the shingles of all texts, sorted within each text.
        starts: [T + 1] int64, bounds of the texts in `hashes`.
    """

    hashes: Hashes
    starts: NDArray[np.int64]

    def of(self, text: int) -> Hashes:
        """Return the shingles of one text."""
        return self.hashes[self.starts[text] : self.starts[text + 1]]

    def similarity(self, one: int, other: int) -> float:
        """Return the Jaccard similarity of two texts, 0 to 1; 0 if one has no shingle."""
        first, second = self.of(one), self.of(other)
        shared = len(np.intersect1d(first, second, assume_unique=True))
        union = len(first) + len(second) - shared
        return shared / union if union else 0.0


def hash_shingles(texts: Iterable[str]) -> Shingles:
    """Hash the word 5-grams of normalized texts; a text of fewer words has none.

    Args:
        texts: results of `normalize`; the first `MAX_WORDS` words count.
    """
    ids: defaultdict[str, int] = defaultdict(count().__next__)
    flat = array("q")
    lengths = []
    for text in texts:
        words = text.split(" ", MAX_WORDS)[:MAX_WORDS]
        flat.extend(map(ids.__getitem__, words))
        lengths.append(len(words))
    words_of = np.random.default_rng(0).integers(1, 2**63, len(ids) or 1, np.uint64)
    grams = _combine(words_of[np.frombuffer(flat, np.int64)]) if flat else np.zeros(0, np.uint64)
    return _unique_by_text(grams, np.array(lengths, np.int64))


def _combine(words: Hashes) -> Hashes:
    """Hash every run of 5 words; the last 4 positions wrap around and are not used."""
    found = np.zeros(len(words), np.uint64)
    for offset in range(SHINGLE):
        found = found * np.uint64(0x9E3779B97F4A7C15) + np.roll(words, -offset)
    return found ^ (found >> np.uint64(29))


def _unique_by_text(grams: Hashes, lengths: NDArray[np.int64]) -> Shingles:
    """Keep the shingles within one text, each once and sorted."""
    text = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(len(grams)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    inside = position + SHINGLE <= np.repeat(lengths, lengths)
    text, grams = text[inside], grams[inside]
    tagged = text.astype(np.uint64) << _HASH_BITS
    keys = np.sort(tagged | (grams >> (np.uint64(64) - _HASH_BITS)))
    keys = keys[np.diff(keys, prepend=~keys[:1]) != 0]  # np.unique hashes, which is slower
    text = (keys >> _HASH_BITS).astype(np.int64)
    counts = np.bincount(text, minlength=len(lengths))
    hashes = keys & ((np.uint64(1) << _HASH_BITS) - np.uint64(1))
    return Shingles(hashes, np.concatenate([[0], np.cumsum(counts)]))


def candidate_pairs(shingles: Shingles) -> Iterator[tuple[int, int]]:
    """Yield pairs of texts that are probably similar, the earlier text first; none twice.

    Of the texts in one bucket each is paired with the first and with the one before, so that the
    number of pairs grows with the number of texts only.
    """
    texts = np.flatnonzero(np.diff(shingles.starts))
    if not len(texts):
        return
    seen: set[tuple[int, int]] = set()
    for keys in _band_keys(shingles, texts):
        order = np.argsort(keys, kind="stable")
        same = keys[order][1:] == keys[order][:-1]
        first = 0
        for at in np.flatnonzero(same).tolist():
            if not at or not same[at - 1]:
                first = at
            for other in {first, at}:
                pair = (int(texts[order[other]]), int(texts[order[at + 1]]))
                if pair not in seen:
                    seen.add(pair)
                    yield pair


def _band_keys(shingles: Shingles, texts: NDArray[np.int64]) -> Iterator[Hashes]:
    """Yield one key per text, [len(texts)], for each band; equal keys share a bucket."""
    rng = np.random.default_rng(1)
    starts = shingles.starts[texts]
    for _ in range(BANDS):
        key = np.zeros(len(texts), np.uint64)
        for _ in range(BAND_ROWS):
            factor, shift = rng.integers(1, 2**63, 2, np.uint64)
            mixed = shingles.hashes * (factor * np.uint64(2) + np.uint64(1)) + shift
            mixed ^= mixed >> np.uint64(32)
            key = key * np.uint64(0x100000001B3) + np.minimum.reduceat(mixed, starts)
        yield key


def texts_are_similar(
    parts: Sequence[Shingles], texts: Sequence[Sequence[str]], i: int, j: int
) -> bool:
    """Whether each part of two rows is similar; short parts must be equal.

    Args:
        parts: shingles of each part.
        texts: [part][row], results of `simplify`.
        i: one row.
        j: the other row.
    """
    for shingles, column in zip(parts, texts, strict=True):
        if column[i] == column[j]:
            continue
        words = min(len(_WORD.findall(column[i])), len(_WORD.findall(column[j])))
        least = SIMILARITY if words >= LONG_WORDS else SHORT_SIMILARITY
        if words < MIN_WORDS or shingles.similarity(i, j) < least:
            return False
    return True
