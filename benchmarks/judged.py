"""`rlhf reward`, `dpo` or `bco` beside TRL's trainer: same model, rows, batch, type; in turns.

    bash benchmarks/install_peers.sh
    RLHF_DATA=... python -m benchmarks.judged dpo [--reference stored] [--rounds 3] [--steps 13]
    RLHF_DATA=... python -m benchmarks.judged dpo --shape 135m --precisions bf16 --rounds 1
        --steps 3

Real preference pairs whose rows have at most 512 tokens; for BCO one response of each pair, chosen
and rejected in turn. The first step is not counted. With `--reference stored` both sides compute
the reference before the first step, which is then not counted either; with `copy` in every step.
"""

import json
import statistics
from typing import Any

from benchmarks.beside import BATCH, LONGEST, in_turns, options, report
from benchmarks.common import SCRATCH, data_folder, make_model, model_folder, texts
from rlhf_cli.runs.run_files import read_json_lines

VERSIONS = {"reward": "1.16.0", "dpo": "1.16.0", "bco": "1.13.0"}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("stage", choices=VERSIONS)
    parser.add_argument("--reference", choices=("copy", "stored"), default="copy")
    chosen = parser.parse_args()
    model, rows, tokens = prepare(chosen.stage, chosen.steps, chosen.shape)
    compared = chosen.stage != "reward"
    argv = [model, rows, *([f"model.reference={chosen.reference}"] if compared else [])]
    runs = in_turns(chosen.stage, VERSIONS[chosen.stage], argv, chosen)
    name = f"{chosen.stage}_{chosen.reference}" if compared else chosen.stage
    unit = "rows" if chosen.stage == "bco" else "pairs"
    report(name, runs, tokens, unit, chosen.shape)


def prepare(stage: str, steps: int, shape: str = "8m") -> tuple[str, str, float]:
    """The model folder, the rows' file and the mean number of tokens of an example."""
    rows = read_json_lines(data_folder() / "preference_helpful_train.jsonl")
    pairs = [pair(row) for row in rows]
    SCRATCH.mkdir(parents=True, exist_ok=True)
    corpus = (row["prompt"] + row["chosen"] for row in pairs)
    model = model_folder(shape)
    tokenizer = make_model(model, corpus, shape)
    kept = [row for row in pairs if max(lengths(row, tokenizer)) < LONGEST][: steps * BATCH]
    if stage == "bco":
        kept = [one_of(row, index) for index, row in enumerate(kept)]
    file = SCRATCH / f"{stage}_{steps}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return str(model), str(file), statistics.mean(sum(lengths(row, tokenizer)) for row in kept)


def pair(row: dict[str, Any]) -> dict[str, Any]:
    prompt, chosen = texts(row)
    return {"prompt": prompt, "chosen": chosen, "rejected": " " + row["rejected"]}


def one_of(row: dict[str, Any], index: int) -> dict[str, Any]:
    desirable = index % 2 == 0
    said = row["chosen" if desirable else "rejected"]
    return {"prompt": row["prompt"], "completion": said, "label": desirable}


def lengths(row: dict[str, Any], tokenizer: Any) -> list[int]:
    """Tokens of each of an example's rows, the end apart."""
    prompt = len(tokenizer(row["prompt"])["input_ids"])
    names = [name for name in ("chosen", "rejected", "completion") if name in row]
    return [prompt + len(tokenizer(row[name])["input_ids"]) for name in names]


if __name__ == "__main__":
    main()
