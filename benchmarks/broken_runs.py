"""What `rlhf doctor` says about runs that were broken on purpose, and about healthy ones.

    python -m benchmarks.broken_runs [--out build/benchmarks/broken] [--only NAME ...]

Each fault is one training run of the tiny models with one thing wrong: a key, or the rows. The
table says which finding was expected, which were made, and whether the fault was named. The runs of
the tiny chain, which are healthy, must have no problem and no warning. Runs that are there already
are not repeated, so that rules can be changed and tried again.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, SCRATCH

DATA = Path(__file__).parent.parent / "recipes" / "tiny" / "data"
PPO = ("ppo", "config=tiny/ppo", "model={sft}", "sampling.max_new_tokens=40", "train.batch_size=16")
REWARDS = """
def length(*, responses, **rest):
    return [len(response) / 20 for response in responses]


def one(*, responses, **rest):
    return [1.0 for _ in responses]


def words(*, responses, **rest):
    return [float(response.lower().count("good")) for response in responses]
"""

HEALTHY = {
    "pretrain": ("pretrain", "config=tiny/pretrain"),
    "sft": ("sft", "config=tiny/sft", "model={pretrain}"),
    "reward": ("reward", "config=tiny/reward", "model={sft}"),
    "dpo": ("dpo", "config=tiny/dpo", "model={sft}"),
    "bco": ("bco", "config=tiny/bco", "model={sft}"),
    "ppo_judge": ("ppo", "config=tiny/ppo", "model={sft}"),
    "ppo": ("ppo", "config=tiny/ppo", "model={sft}", "reward.function=", "reward.model={reward}"),
    "qsft": ("sft", "config=tiny/qsft", "model={pretrain}"),
    "grpo": (
        "ppo",
        "config=tiny/ppo",
        "model={sft}",
        "advantage=grpo",
        "samples_per_prompt=4",
        "train.batch_size=16",
    ),
}
"""Run -> arguments, in the order in which they build on each other."""


@dataclass(frozen=True)
class Fault:
    """A run with one thing wrong.

    Attributes:
        what: the fault in words.
        words: arguments of `rlhf`; names in braces are earlier runs or files of `make_files`.
        named_by: codes of findings that name the fault for the right reason.
    """

    what: str
    words: tuple[str, ...]
    named_by: tuple[str, ...] = field(kw_only=True)


FAULTS = {
    "rate_high": Fault(
        "learning rate of SFT 1000 times too high",
        ("sft", "config=tiny/sft", "model={pretrain}", "lr=2", "max_steps=40"),
        named_by=("loss.rose",),
    ),
    "rate_low": Fault(
        "learning rate of DPO 10,000 times too low",
        ("dpo", "config=tiny/dpo", "model={sft}", "loss_type=sigmoid", "lr=1e-8", "max_steps=40"),
        named_by=("dpo.stuck",),
    ),
    "length_reward": Fault(
        "PPO's reward is the length of the response",
        (*PPO, "reward.function={rewards}:length", "kl_coef=0.02", "lr=3e-4", "max_steps=20"),
        named_by=("ppo.length", "ppo.score_by_length"),
    ),
    "no_eos": Fault(
        "reward of length, no penalty for a missing end",
        (
            *PPO,
            "reward.function={rewards}:length",
            "kl_coef=0",
            "kl_limit=1000",
            "lr=2e-4",
            "max_steps=24",
        ),
        named_by=("ppo.eos", "ppo.ends_less"),
    ),
    "swapped_reward": Fault(
        "chosen and rejected swapped in the rows of the reward model",
        (
            "reward",
            "config=tiny/reward",
            "model={sft}",
            "data={swapped}",
            "data.eval={test}",
            "max_steps=50",
        ),
        named_by=("reward.swapped",),
    ),
    "swapped_dpo": Fault(
        "chosen and rejected swapped in the rows of DPO",
        (
            "dpo",
            "config=tiny/dpo",
            "model={sft}",
            "data={swapped}",
            "data.eval={test}",
            "lr=5e-4",
            "max_steps=40",
        ),
        named_by=("dpo.swapped",),
    ),
    "frozen_value": Fault(
        "value model not trained",
        (*PPO, "vf_coef=0", "max_steps=16"),
        named_by=("ppo.value",),
    ),
    "top_p": Fault(
        "rollouts sampled with top_p=0.5",
        (*PPO, "sampling.top_p=0.5", "allow_truncated_sampling=true", "max_steps=16"),
        named_by=("ppo.truncated_sampling", "ppo.negative_kl"),
    ),
    "temperature": Fault(
        "GRPO's rollouts sampled at temperature 0.05",
        (
            *PPO[:-1],
            "train.batch_size=4",
            "advantage=grpo",
            "samples_per_prompt=4",
            "temperature=0.05",
            "max_steps=12",
        ),
        named_by=("ppo.constant_groups",),
    ),
    "one_row": Fault(
        "SFT on 200 copies of one row",
        ("sft", "config=tiny/sft", "model={pretrain}", "data={copies}", "max_steps=60"),
        named_by=("data.distinct",),
    ),
    "eight_rows": Fault(
        "SFT on 8 rows for 60 epochs",
        (
            "sft",
            "config=tiny/sft",
            "model={pretrain}",
            "data={eight}",
            "data.eval={sft_test}",
            "train.batch_size=8",
            "max_steps=60",
            "train.eval_steps=10",
        ),
        named_by=("loss.overfit",),
    ),
    "constant_reward": Fault(
        "reward function that returns 1 for every response",
        (*PPO, "reward.function={rewards}:one", "max_steps=12"),
        named_by=("ppo.constant_reward",),
    ),
    "no_kl": Fault(
        "reward for one word, kl_coef=0, and ten times the rate",
        (*PPO, "reward.function={rewards}:words", "kl_coef=0", "lr=1e-3", "max_steps=20"),
        named_by=("ppo.far", "ppo.reward_hacking"),
    ),
    "length_pairs": Fault(
        "reward model on pairs whose chosen response is always the longer",
        (
            "reward",
            "config=tiny/reward",
            "model={sft}",
            "data={longer}",
            "data.eval={longer_test}",
            "max_steps=50",
        ),
        named_by=("reward.length",),
    ),
    "garbage_row": Fault(
        "SFT with one long row of random characters, in the last line of the file",
        (
            "sft",
            "config=tiny/sft",
            "model={pretrain}",
            "data={garbage}",
            "data.eval={sft_test}",
            "train.batch_size=16",
            "train.epochs=1",
            "max_steps=0",
        ),
        named_by=("loss.spikes",),
    ),
    "bco_rate": Fault(
        "learning rate of BCO 100 times too high",
        ("bco", "config=tiny/bco", "model={sft}", "lr=1e-2", "max_steps=30"),
        named_by=("labels.same_direction", "bco.delta_diverges"),
    ),
    "dpo_rate": Fault(
        "learning rate of DPO 50 times too high, without its likelihood term",
        ("dpo", "config=tiny/dpo", "model={sft}", "loss_type=sigmoid", "lr=5e-3", "max_steps=30"),
        named_by=("dpo.displacement",),
    ),
}


def make_files(folder: Path) -> dict[str, str]:
    """Write the rows and rewards of the faults; returns name -> path."""
    folder.mkdir(parents=True, exist_ok=True)
    sft, pairs = read("sft_train"), read("reward_train")
    rows: dict[str, list[dict[str, Any]]] = {
        "swapped": [swap(row) for row in pairs],
        "copies": sft[:1] * 200,
        "eight": sft[:8],
        "longer": by_length(pairs),
        "longer_test": by_length(read("reward_test")),
        "garbage": [*sft, garbage(sft[0])],
    }
    for name, found in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in found)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "rewards.py").write_text(REWARDS, encoding="utf-8")
    return {
        **{name: str(folder / f"{name}.jsonl") for name in rows},
        "rewards": str(folder / "rewards.py"),
        "test": str(DATA / "reward_test.jsonl"),
        "sft_test": str(DATA / "sft_test.jsonl"),
    }


def read(name: str) -> list[dict[str, Any]]:
    """The rows of a file of the tiny chain."""
    lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def swap(row: dict[str, Any]) -> dict[str, Any]:
    """A pair with its responses swapped."""
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


def by_length(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pairs with the longer response as the chosen one."""
    differ = [row for row in rows if len(row["chosen"]) != len(row["rejected"])]
    return [row if len(row["chosen"]) > len(row["rejected"]) else swap(row) for row in differ]


def garbage(row: dict[str, Any]) -> dict[str, Any]:
    """A chat whose answer is random characters."""
    signs = random.Random(0).choices("#@%&*~^|<>{}[]0123456789", k=600)
    question, answer = row["messages"]
    return {"messages": [question, {**answer, "content": "".join(signs)}]}


def train(name: str, words: tuple[str, ...], out: Path, paths: dict[str, str]) -> Path:
    """Train a run if it is not there; a run that fails is a result too."""
    folder = out / name
    if not (folder / "manifest.json").exists():
        given = [word.format(**paths) for word in words]
        command = [sys.executable, "-m", "rlhf_cli", *given, f"output_dir={folder}"]
        folder.mkdir(parents=True, exist_ok=True)
        with (out / f"{name}.log").open("w", encoding="utf-8") as log:
            code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
        print(f"{name}: trained, exit code {code}", file=sys.stderr, flush=True)
    return folder


def has_ended(folder: Path) -> bool:
    """Whether a run is there and not going on."""
    file = folder / "manifest.json"
    return file.exists() and json.loads(file.read_text(encoding="utf-8"))["status"] != "running"


def examine(folder: Path) -> dict[str, Any]:
    """What `rlhf doctor` says about a run: its codes by severity, and its sentences."""
    command = [sys.executable, "-m", "rlhf_cli", "doctor", str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    ran = {"command": command_of(folder)}
    if done.returncode not in (0, 1):
        return {**ran, "error": done.stderr.strip(), "found": []}
    found = json.loads(done.stdout)["runs"][0]["findings"]
    kept = [one for one in found if one["severity"] in ("problem", "warning")]
    return {**ran, "exit_code": done.returncode, "found": kept}


def command_of(folder: Path) -> str:
    """The command that made a run, with paths relative to the folder of all runs."""
    argv = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["argv"]
    words = [word for word in argv if not word.startswith("output_dir=")]
    for parent in (folder.parent, DATA):
        words = [word.replace(f"{parent}/", "") for word in words]
    return f"rlhf {' '.join(words)}"


def verdict(fault: Fault, said: dict[str, Any]) -> dict[str, Any]:
    """A line of the table of faults."""
    codes = [one["code"] for one in said["found"]]
    named = [one for one in said["found"] if one["code"] in fault.named_by]
    return {
        "fault": fault.what,
        "command": said["command"],
        "expected": list(fault.named_by),
        "found": codes,
        "named": bool(named),
        "said": " ".join(named[0][part] for part in ("sentence", "cause")) if named else "",
        "advice": named[0]["advice"] if named else [],
        "exit_code": said.get("exit_code"),
    }


def show(rows: dict[str, dict[str, Any]], healthy: dict[str, list[str]]) -> None:
    """Print the table."""
    for name, row in rows.items():
        mark = "named " if row["named"] else "MISSED"
        print(f"{mark}  {name:<16} {row['fault']}")
        print(f"        {row['said'] or ', '.join(row['found']) or 'nothing found'}")
    for name, codes in healthy.items():
        print(f"healthy {name:<16} {', '.join(codes) or 'nothing found'}")
    named = sum(row["named"] for row in rows.values())
    print(f"named {named} of {len(rows)}; {sum(map(bool, healthy.values()))} false alarms")


def main() -> None:
    """Train what is missing, examine all, print and save the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=SCRATCH / "broken")
    parser.add_argument("--only", nargs="*", default=None, help="faults; default: all")
    parser.add_argument("--there", action="store_true", help="examine only runs that have ended")
    given = parser.parse_args()
    out = given.out.absolute()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    paths = make_files(out / "data")
    healthy = {}
    for name, words in HEALTHY.items():
        if given.there and not has_ended(out / name):
            continue
        folder = train(name, words, out, paths)
        paths[name] = str(folder)
        healthy[name] = [one["code"] for one in examine(folder)["found"]]
    chosen = {name: FAULTS[name] for name in given.only or FAULTS}
    rows = {
        name: verdict(fault, examine(train(name, fault.words, out, paths)))
        for name, fault in chosen.items()
        if not given.there or has_ended(out / name)
    }
    show(rows, healthy)
    if given.only is None:
        text = json.dumps({"faults": rows, "healthy": healthy}, indent=2, ensure_ascii=False)
        (RESULTS / "broken_runs.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
