"""What the runs of run.sh learned: each on its test file, with 95 % intervals, beside plain rules.

python -m benchmarks.real.table RUNS
"""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import save
from benchmarks.real.intervals import Values, Weighted, auc, interval, less, mean
from benchmarks.real.rows import Judged, judge
from rlhf_cli.evaluation.intervals import Estimate
from rlhf_cli.evaluation.metrics import pearson

RUNS = {
    "reward-arguments": "reward",
    "reward-assistant": "reward",
    "dpo-helpful": "dpo",
    "bco-coffee": "bco",
    "bco-math": "bco",
}

Lines = Iterator[tuple[str, Estimate]]


def units(example: dict[str, Any]) -> list[str]:
    """What an example shares with others: the arguments of a pair, or a problem, else nothing."""
    name = str(example["id"])
    if "margin" in example:
        debate, _, arguments = name.partition("/")
        return [f"{debate}/{argument}" for argument in arguments.split("_")]
    if name.startswith("gsm8k/"):
        return [name.rpartition("/")[0]]
    return [name]


def of_pairs(judged: Judged, kept: NDArray[np.bool_], stage: str) -> Lines:
    """Share of pairs whose chosen response has the higher value, beside the rules of length."""
    examples = [e for e, keep in zip(judged.examples, kept, strict=True) if keep]
    values = judged.values.reshape(-1, 2)[kept]
    lengths = np.array([[len(e["chosen"]), len(e["rejected"])] for e in examples], float)
    shared = [units(example) for example in examples]
    rules = {"longer": mean(right(lengths)), "shorter": mean(right(-lengths))}
    yield from beside("accuracy", mean(right(values)), rules, shared)
    if stage == "dpo":
        yield "margin, nats", interval(mean(values[:, 0] - values[:, 1]), shared)
        yield "reward of the chosen", interval(mean(values[:, 0]), shared)
        yield "reward of the rejected", interval(mean(values[:, 1]), shared)
    correlation = float(pearson(values.ravel(), lengths.ravel()))
    yield "correlation with length", Estimate(correlation, np.nan, np.nan, values.size)


def of_labels(judged: Judged) -> Lines:
    """How far the values of good and of bad responses lie apart, beside the rules of length."""
    labels = np.array([example["label"] for example in judged.examples])
    lengths = np.array([len(example["completion"]) for example in judged.examples], float)
    shared = [units(example) for example in judged.examples]
    rules = {"longer": auc(lengths, labels), "shorter": auc(-lengths, labels)}
    yield from beside("AUC", auc(judged.values, labels), rules, shared)
    good, bad = judged.values[labels], judged.values[~labels]
    for name, values in (("good", good), ("bad", bad)):
        yield f"mean of the {name}", Estimate(float(values.mean()), np.nan, np.nan, len(values))


def beside(
    name: str, found: Weighted, rules: dict[str, Weighted], shared: list[list[str]]
) -> Lines:
    """A statistic, that of each rule, and how much it is better than the better rule."""
    yield name, interval(found, shared)
    estimates = {rule: interval(of, shared) for rule, of in rules.items()}
    for rule, estimate in estimates.items():
        yield f"always the {rule}", estimate
    best = max(rules, key=lambda rule: estimates[rule].value)
    yield f"better than the {best} by", interval(less(found, rules[best]), shared)


def right(values: Values) -> Values:
    """[n]: 1 where the first of two is larger, a half where they are equal; of [n, 2]."""
    apart = values[:, 0] - values[:, 1]
    return (apart > 0) + 0.5 * (apart == 0)


def lines(name: str, stage: str, judged: Judged) -> Iterator[tuple[str, str, Estimate]]:
    """All results of a run; of one with several test files also those of each file."""
    if stage == "bco":
        for line in of_labels(judged):
            yield name, *line
        return
    files = np.array(judged.files)
    names = sorted(set(judged.files))
    parts = {name: np.ones(len(files), bool)}
    if len(names) > 1:
        parts |= {f"  {file}": files == file for file in names}
    for part, kept in parts.items():
        for line in of_pairs(judged, kept, stage):
            yield part, *line


def main(runs: Path) -> None:
    found = []
    for name, stage in RUNS.items():
        for part, metric, value in lines(name, stage, judge(runs / name, stage)):
            found.append({"run": part.strip(), "metric": metric, **asdict(value)})
            width = "" if np.isnan(value.low) else f"[{value.low:.3f}, {value.high:.3f}]"
            print(f"{part:28} {metric:28} {value.value:8.3f} {width:18} {value.n}", flush=True)
    save("real", {"results": found})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
