"""Print what PPO changed: mean probability of praise before and after, its price, and samples.

    python table.py RUNS SENTENCES

RUNS holds `pretrain`, `reward` and one or more `ppo-*`; each of the models that write has
`answers.jsonl`, its answers to the held-out prompts. SENTENCES are the rows that the classifier
learned from: of them, a second classifier is made that counts words. No policy has learned from
that one, so that it tells praise from what only the first takes for praise.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf_cli.evaluation.intervals import Measurement

SHOWN = 10
"""Prompts with samples."""

BASELINE = "pretrain"


def rows(path: Path) -> list[dict[str, Any]]:
    """Of a `.jsonl` file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def classified(folder: Path, texts: list[str]) -> list[float]:
    """What the learned classifier gives each text, with an end as its rows had it: from 0 to 1."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        encoded = [tokenizer(text + tokenizer.eos_token, return_tensors="pt") for text in texts]
        return [float(model(one["input_ids"]).logits.sigmoid()) for one in encoded]


def counted(sentences: list[dict[str, Any]], texts: list[str]) -> list[float]:
    """What a logistic regression on words and pairs of words gives each text: from 0 to 1."""
    words = CountVectorizer(token_pattern=r"\S+", ngram_range=(1, 2), min_df=2, binary=True)
    model = make_pipeline(words, LogisticRegression(C=0.1, max_iter=1000))
    model.fit([row["text"] for row in sentences], [row["label"] for row in sentences])
    return [float(value) for value in model.predict_proba(texts)[:, 1]]


def variety(responses: list[str]) -> float:
    """Share of different ones among all runs of three words: low where a phrase comes again."""
    split = [response.split() for response in responses]
    runs = [tuple(words[i : i + 3]) for words in split for i in range(len(words) - 2)]
    return len(set(runs)) / max(1, len(runs))


def shown(values: list[float]) -> str:
    """A mean with its 95 % interval."""
    found = Measurement("mean", (values,)).estimate()
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def spent(runs: Path, name: str) -> str:
    """KL in nats, length in tokens and share of ended responses, on the held-out prompts."""
    if name == BASELINE:
        first = min(runs.glob("ppo-*"))
        found = json.loads((first / "manifest.json").read_text(encoding="utf-8"))["before"]
    else:
        found = json.loads((runs / name / "manifest.json").read_text(encoding="utf-8"))["after"]
    return f"{found['kl']:>6.2f}{found['response_length']:>9.1f}{found['eos_fraction']:>8.0%}"


def main(runs: Path, sentences: Path) -> None:
    """A line for each model that writes; then some prompts with what each wrote."""
    names = [BASELINE, *sorted(folder.name for folder in runs.glob("ppo-*"))]
    answers = {name: rows(runs / name / "answers.jsonl") for name in names}
    learned = rows(sentences)
    head = f"{'':12}{'classifier':24}{'word counts':24}"
    print(f"\n{head}{'KL':>6}{'tokens':>9}{'ended':>8}{'variety':>9}")
    for name, found in answers.items():
        texts = [row["prompt"] + row["response"] for row in found]
        praise = shown(classified(runs / "reward" / "model", texts))
        counts = shown(counted(learned, texts))
        various = variety([row["response"] for row in found])
        print(f"{name:12}{praise:24}{counts:24}{spent(runs, name)}{various:>9.2f}", flush=True)
    for index in range(min(SHOWN, len(answers[BASELINE]))):
        print(f"\n{answers[BASELINE][index]['prompt']} ...")
        for name, found in answers.items():
            print(f"  {name:12}{found[index]['response'].strip()}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
