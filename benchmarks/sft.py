"""Supervised fine-tuning beside TRL's SFTTrainer: same model, rows, batch, type; in turns.

    bash benchmarks/install_peers.sh
    RLHF_DATA=... python -m benchmarks.sft [--rounds 3] [--steps 13]

Each run is a process of its own. The first step is not counted. Real preference rows (prompt and
chosen response) of at most 512 tokens; each side in bf16 and in fp32, and the better one counts.
"""

import argparse
import json
import statistics

from benchmarks.common import SCRATCH, child, data_folder, make_model, save, spread, texts

BATCH, LONGEST = 16, 512
SIDES = ("rlhf bf16", "TRL bf16", "rlhf fp32", "TRL fp32")


def prepare(steps: int) -> tuple[str, str, float]:
    """The model folder, the rows' file and the mean number of tokens."""
    lines = (data_folder() / "preference_helpful_train.jsonl").read_text(encoding="utf-8")
    pairs = [texts(json.loads(line)) for line in lines.splitlines()]
    SCRATCH.mkdir(parents=True, exist_ok=True)
    tokenizer = make_model(SCRATCH / "llama_8m", (a + b for a, b in pairs))
    lengths = [len(tokenizer(a)["input_ids"]) + len(tokenizer(b)["input_ids"]) for a, b in pairs]
    kept = [(p, n) for p, n in zip(pairs, lengths, strict=True) if n < LONGEST][: steps * BATCH]
    rows = SCRATCH / f"sft_{steps}.jsonl"
    with rows.open("w", encoding="utf-8") as file:
        for (prompt, completion), _ in kept:
            file.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")
    return str(SCRATCH / "llama_8m"), str(rows), statistics.mean(n for _, n in kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=13)
    options = parser.parse_args()
    model, rows, tokens = prepare(options.steps)
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for number in range(options.rounds):
        for side in SIDES:
            name, precision = side.split()
            worker = f"benchmarks.workers.sft_{name.lower()}"
            path = "build/peers/trl-1.16.0" if name == "TRL" else ""
            runs[side].append(child(worker, model, rows, precision, str(number), path=path))
            print(side, runs[side][-1], flush=True)
    report(runs, tokens)


def report(runs: dict[str, list[dict[str, float]]], tokens: float) -> None:
    def median(side: str, key: str) -> float:
        return statistics.median(run[key] for run in runs[side])

    print(f"\nrows of {tokens:.0f} tokens on average, batch {BATCH}; median (range)")
    for side in SIDES:
        speed = spread([run["rows_per_second"] for run in runs[side]])
        memory = spread([run["peak_memory_mb"] for run in runs[side]])
        print(f"{side:10} {speed:>24} rows/s {memory:>32} MB")
    ours, peer = (
        max((s for s in SIDES if s.startswith(name)), key=lambda s: median(s, "rows_per_second"))
        for name in ("rlhf", "TRL")
    )
    pairs = zip(runs[ours], runs[peer], strict=True)
    ratios = [a["rows_per_second"] / b["rows_per_second"] for a, b in pairs]
    memory = median(ours, "peak_memory_mb") / median(peer, "peak_memory_mb")
    print(f"{ours} / {peer}: {spread(ratios)} times the rows/s, {memory:.2f} of the memory")
    save("sft", {"tokens_per_row": tokens, "batch": BATCH, "runs": runs, "ratios": ratios})


if __name__ == "__main__":
    main()
