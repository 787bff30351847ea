"""Options of `rlhf grpo` on sums: success on held-out prompts beside the plain form.

    python -m benchmarks.grpo_options [--options plain,gspo] [--seeds 0,1,2] [--steps 120]

Each row is an option, with all seeds; a run that is complete is not repeated, so that the rows can
be computed in parts: the table has those of all parts with the same steps. Success is the share of
200 held-out prompts answered correctly at temperature 1, as the exact judge says. The runs lie in
build/benchmarks/grpo_options, the results in benchmarks/results/grpo_options.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, SCRATCH, save
from rlhf_cli.train.metrics import read_metrics

RECIPE = Path("recipes/arithmetic_grpo")
RUNS = SCRATCH / "grpo_options"

TWO = (
    "reward.function=",
    "reward.terms=[{function: recipes/arithmetic_grpo/judge.py:score}, "
    "{length_penalty: 0.1, free_length: 2}]",
)
"""Two rewards: the sum, and a penalty on the tokens of an answer."""

OPTIONS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "no KL": ("kl_coef=0",),
    "rloo": ("advantage=rloo",),
    "scale=none": ("scale=none",),
    "scale=batch": ("scale=batch",),
    "sequence": ("loss_aggregation=sequence",),
    "constant": ("loss_aggregation=constant",),
    "dr_grpo": ("scale=none", "loss_aggregation=constant"),
    "clip higher": ("clip_range_high=0.28",),
    "dual clip": ("dual_clip=3",),
    "gspo": (
        *("ratio=sequence", "loss_aggregation=sequence"),
        *("clip_range=3e-4", "clip_range_high=4e-4"),
    ),
    "cispo": ("policy_loss=cispo", "clip_range_high=4"),
    "entropy": ("entropy_coef=0.01",),
    "entropy target": ("entropy_target=0.3",),
    "masked": ("mask_truncated=true",),
    "overlong": ("overlong_buffer=2",),
    "dapo": (
        *("kl_coef=0", "clip_range_high=0.28", "overlong_buffer=2"),
        "mask_truncated=true",
    ),
    "two epochs": ("ppo_epochs=2",),
    "two epochs, shuffled": ("ppo_epochs=2", "minibatch_shuffle=true"),
    "dynamic sampling": ("dynamic_sampling=2",),
    "two rewards": TWO,
    "two rewards apart": (*TWO, "normalize_rewards=each"),
}
"""Row -> keys. The clip ranges of GSPO and CISPO are near those of their papers."""

COLUMNS = {
    "objective/scores": "reward",
    "policy/entropy": "entropy",
    "objective/kl": "KL",
    "policy/clip_fraction": "clipped",
}
"""Metric -> heading; means of the last ten rollouts."""

T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}
"""Number of seeds -> Student's t for an interval of 95 %."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--options", default=",".join(OPTIONS), help="rows, separated by commas")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=120)
    chosen = parser.parse_args()
    names = split_names(chosen.options)
    found = stored(chosen.steps)
    for seed in map(int, chosen.seeds.split(",")):
        for name in names:
            found.setdefault(name, {})[str(seed)] = measure(name, seed, chosen.steps)
            save("grpo_options", {"steps": chosen.steps, "runs": found})
    print(table({name: list(found[name].values()) for name in OPTIONS if name in found}))


def split_names(given: str) -> list[str]:
    """Rows in the order of `OPTIONS`; some names have a comma in them."""
    names = [name for name in OPTIONS if f",{name}," in f",{given},"]
    # `two epochs` is also the beginning of `two epochs, shuffled`
    if "two epochs, shuffled" in names and given.count("two epochs") < 2:
        names.remove("two epochs")
    unknown = set(given.split(",")) - {part for name in names for part in name.split(",")}
    if unknown or not names:
        sys.exit(f"--options: no {sorted(unknown)}; there are: {'; '.join(OPTIONS)}")
    return names


def stored(steps: int) -> dict[str, dict[str, Any]]:
    """Row -> seed -> measurements of earlier calls with as many steps."""
    file = RESULTS / "grpo_options.json"
    if not file.is_file():
        return {}
    read = json.loads(file.read_text(encoding="utf-8"))
    runs: dict[str, dict[str, Any]] = read["runs"] if read["steps"] == steps else {}
    return runs


def measure(name: str, seed: int, steps: int) -> dict[str, Any]:
    """Train with an option, and evaluate the result."""
    start = RUNS / "sft"
    rlhf("sft", "config=arithmetic_grpo/sft", f"output_dir={start}")
    out = RUNS / f"{'_'.join(name.replace(',', '').split())}-{steps}-{seed}"
    words = [f"model={start}", f"seed={seed}", f"max_steps={steps}", f"output_dir={out}"]
    words += [f"train.warmup_steps={min(5, steps)}", "log.sample_prompts=0"]
    rlhf("grpo", "config=arithmetic_grpo/grpo", *words, *OPTIONS[name])
    lines = [line for line in read_metrics(out / "metrics.jsonl") if "objective/scores" in line]
    last = lines[-10:]
    means = {metric: statistics.mean(line[metric] for line in last) for metric in COLUMNS}
    return {"success": success(out), "steps": len(lines), **means}


def success(run: Path) -> dict[str, float]:
    """Share of held-out prompts with the right answer, with its interval over the prompts."""
    file = run / "success.json"
    judge = f"judge={RECIPE / 'judge.py'}:score"
    words = [judge, f"prompts={RECIPE / 'data' / 'test.jsonl'}", "temperature=1"]
    rlhf("evaluate", str(run), *words, "max_new_tokens=6", "batch_size=200", f"output={file}")
    rows = json.loads(file.read_text(encoding="utf-8"))["results"]
    [row] = [row for row in rows if row["metric"] == "score"]
    return {name: row[name] for name in ("value", "low", "high")}


def rlhf(*words: str) -> None:
    """Run the command; nothing of a run that is complete."""
    RUNS.mkdir(parents=True, exist_ok=True)
    log = RUNS / "last.log"
    with log.open("w", encoding="utf-8") as told:
        command = [sys.executable, "-m", "rlhf_cli", *words]
        done = subprocess.run(command, stdout=told, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        sys.exit(f"rlhf {' '.join(words)} failed; see {log}")


def table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A Markdown table: a row for each option, means over its seeds."""
    heads = ["option", "keys", "seeds", "success, % [95 %]", *COLUMNS.values()]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for name, runs in found.items():
        keys = " ".join(OPTIONS[name]).replace("|", "\\|")
        means = [statistics.mean(run[metric] for run in runs) for metric in COLUMNS]
        cells = [name, f"`{keys}`" if keys else "", str(len(runs)), interval(runs)]
        lines.append(f"| {' | '.join([*cells, *(f'{mean:.3f}' for mean in means)])} |")
    return "\n".join(lines)


def interval(runs: Sequence[Mapping[str, Any]]) -> str:
    """Mean success with an interval over seeds; of one seed, its interval over prompts."""
    values = [100 * run["success"]["value"] for run in runs]
    mean = statistics.mean(values)
    if len(values) == 1:
        low, high = (100 * runs[0]["success"][end] for end in ("low", "high"))
    else:
        half = T_95.get(len(values), 2.0) * statistics.stdev(values) / len(values) ** 0.5
        low, high = mean - half, mean + half
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    main()
