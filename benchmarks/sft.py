"""Supervised fine-tuning beside TRL's SFTTrainer: same model, rows, batch, type; in turns.

    bash benchmarks/install_peers.sh
    RLHF_DATA=... python -m benchmarks.sft [--rounds 3] [--steps 13]
    RLHF_DATA=... python -m benchmarks.sft --shape 135m --precisions bf16 --rounds 1
        --steps 3

Each run is a process of its own. The first step is not counted. Real preference rows (prompt and
chosen response) of at most 512 tokens; each side in bf16 and in fp32, and the better one counts.
"""

import json
import statistics

from benchmarks.beside import BATCH, LONGEST, in_turns, options, report
from benchmarks.common import SCRATCH, data_folder, make_model, model_folder, texts
from rlhf_cli.runs.run_files import read_json_lines


def prepare(steps: int, shape: str = "8m") -> tuple[str, str, float]:
    """The model folder, the rows' file and the mean number of tokens."""
    rows = read_json_lines(data_folder() / "preference_helpful_train.jsonl")
    pairs = [texts(row) for row in rows]
    SCRATCH.mkdir(parents=True, exist_ok=True)
    model = model_folder(shape)
    tokenizer = make_model(model, (a + b for a, b in pairs), shape)
    lengths = [len(tokenizer(a)["input_ids"]) + len(tokenizer(b)["input_ids"]) for a, b in pairs]
    kept = [(p, n) for p, n in zip(pairs, lengths, strict=True) if n < LONGEST][: steps * BATCH]
    rows = SCRATCH / f"sft_{steps}.jsonl"
    with rows.open("w", encoding="utf-8") as file:
        for (prompt, completion), _ in kept:
            file.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")
    return str(model), str(rows), statistics.mean(n for _, n in kept)


def main() -> None:
    chosen = options(__doc__).parse_args()
    model, rows, tokens = prepare(chosen.steps, chosen.shape)
    runs = in_turns("sft", "1.16.0", [model, rows], chosen)
    report("sft", runs, tokens, "rows", chosen.shape)


if __name__ == "__main__":
    main()
