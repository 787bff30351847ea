"""`rlhf agreement`: how far several raters agree on the same answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.commands.label.config import ties_file
from rlhf_cli.commands.label.items import Item, read_rated, to_json_text
from rlhf_cli.console import format_table, print_result, printable
from rlhf_cli.data.report import pluralize
from rlhf_cli.errors import ConfigError, DataError
from rlhf_cli.evaluation.agreement import (
    MISSING,
    cohen_kappa,
    confusion,
    krippendorff_alpha,
    raw_agreement,
)
from rlhf_cli.evaluation.intervals import Estimate

Decisions = dict[tuple[str, ...], str]
"""What was decided about: an answer, or two answers to a prompt -> the category."""

GOOD, BAD, FIRST, SECOND, TIE = "good", "bad", "first", "second", "tie"
CATEGORIES = (GOOD, BAD, FIRST, SECOND, TIE)


@dataclass(frozen=True)
class Pair:
    """Agreement of two raters on the items that both decided.

    Attributes:
        raters: their names.
        items: number of those items.
        raw: proportion of agreement.
        kappa: Cohen's κ.
        categories: names of the rows and columns of `confusion`.
        confusion: counts; rows are the first rater's decisions.
    """

    raters: tuple[str, str]
    items: int
    raw: Estimate
    kappa: Estimate
    categories: list[str]
    confusion: list[list[int]]


def run(args: list[str]) -> None:
    """Run `rlhf agreement FILE...`.

    Raises:
        ConfigError: the arguments are invalid.
        DataError: a file cannot be read, or no two raters decided the same items.
    """
    files = [arg for arg in args if arg != "--json"]
    if not files or any(arg.startswith("-") for arg in files):
        raise ConfigError(
            f"agreement: got {' '.join(args) or 'nothing'}; need files of rated rows. "
            "Try rlhf agreement ann.jsonl ben.jsonl"
        )
    raters = read_raters([Path(file).expanduser() for file in files])
    if len(raters) < 2:
        raise DataError(
            f"agreement: {', '.join(files)} has the decisions of {', '.join(raters) or 'nobody'} "
            "alone; need two raters"
        )
    pairs = [_compare(raters, *names) for names in combinations(raters, 2)]
    if not any(pair.items for pair in pairs):
        raise DataError(
            f"agreement: {', '.join(raters)} decided no answers in common; need files about the "
            "same prompts and answers"
        )
    overall = _overall(raters)
    print_result("\n".join(_lines(pairs, overall)), _to_json(pairs, overall))


def read_raters(files: Sequence[Path]) -> dict[str, Decisions]:
    """Read the decisions of each rater: by the column `rater`, else by file.

    The file of ties beside a file is read too. Of several decisions of one rater about the same
    answers the last counts.
    """
    found: dict[str, Decisions] = {}
    for path in files:
        ties = ties_file(path)
        items = read_rated(path) + (read_rated(ties, ties=True) if ties.is_file() else [])
        for item in items:
            rater = item.columns.get("rater") or str(path)
            found.setdefault(str(rater), {}).update(_decisions(item))
    return found


def _decisions(item: Item) -> Iterator[tuple[tuple[str, ...], str]]:
    """The decisions of a row: about its answer, or about every two of its answers.

    Two answers are in the order of their texts, so that files agree on which one is the first.
    """
    if item.known is None:
        raise DataError(f"{item.location}: has no decision; need pairs, labels or rankings")
    prompt = to_json_text(item.prompt)
    texts = [to_json_text(answer) for answer in item.answers]
    if len(texts) == 1:
        yield (prompt, texts[0]), GOOD if item.known[0] else BAD
    scored = sorted(zip(texts, item.known, strict=True))
    for (one, first), (other, second) in combinations(scored, 2):
        category = TIE if first == second else FIRST if first > second else SECOND
        yield (prompt, one, other), category


def _codes(
    raters: Mapping[str, Decisions], names: Sequence[str], keys: Sequence[tuple[str, ...]]
) -> list[NDArray[np.int64]]:
    """Code of each rater's category for each item, or `MISSING`."""
    number = {category: code for code, category in enumerate(CATEGORIES)}
    number[""] = MISSING
    listed = [[number[raters[name].get(key, "")] for key in keys] for name in names]
    return [np.array(codes, np.int64) for codes in listed]


def _compare(raters: Mapping[str, Decisions], one: str, other: str) -> Pair:
    keys = sorted(raters[one].keys() & raters[other].keys())
    first, second = _codes(raters, (one, other), keys)
    used = [c for c in range(len(CATEGORIES)) if c in {*first.tolist(), *second.tolist()}]
    counts = confusion(first, second, len(CATEGORIES))[np.ix_(used, used)]
    return Pair(
        (one, other),
        len(keys),
        raw_agreement(first, second),
        cohen_kappa(first, second),
        [CATEGORIES[code] for code in used],
        counts.tolist(),
    )


def _overall(raters: Mapping[str, Decisions]) -> Estimate | None:
    """Krippendorff's α of all raters, where there are more than two."""
    if len(raters) < 3:
        return None
    keys = sorted({key for decisions in raters.values() for key in decisions})
    decided = [key for key in keys if sum(key in one for one in raters.values()) > 1]
    return krippendorff_alpha(_codes(raters, list(raters), decided))


def _lines(pairs: Sequence[Pair], overall: Estimate | None) -> Iterator[str]:
    for pair in pairs:
        one, other = map(printable, pair.raters)
        yield f"{one} and {other}: {pluralize(pair.items, 'decision')} in common"
        if pair.items:
            yield f"  agreement    {_shown(pair.raw)}"
            yield f"  Cohen's κ    {_shown(pair.kappa)}"
            header = [f"{one} \\ {other}", *pair.categories]
            rows = zip(pair.categories, pair.confusion, strict=True)
            table = format_table([header, *([name, *map(str, row)] for name, row in rows)])
            yield from (f"  {line}" for line in table.splitlines())
    if overall is not None:
        yield f"all raters: Krippendorff's α {_shown(overall)}, {overall.n} decisions"


def _shown(one: Estimate) -> str:
    if math.isnan(one.value):
        return "not defined: all decisions are the same"
    interval = "" if math.isnan(one.low) else f"  [{one.low:.3f}, {one.high:.3f}]"
    return f"{one.value:.3f}{interval}"


def _to_json(pairs: Sequence[Pair], overall: Estimate | None) -> dict[str, Any]:
    found = {"pairs": [_without_nan(asdict(pair)) for pair in pairs]}
    alpha = {} if overall is None else {"krippendorff_alpha": _without_nan(asdict(overall))}
    return {**found, **alpha}


def _without_nan(value: Any) -> Any:
    """Replace NaN, which JSON does not have, by null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
