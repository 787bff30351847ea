"""Write the sentences of movie reviews, one a row.

    python sentences.py REVIEWS.jsonl SENTENCES.jsonl

A review has a sentence a line. Rows of one sentence each, as those that the classifier learns from,
teach a model to end its text where a sentence ends.
"""

import json
import sys
from pathlib import Path

SHORTEST = 4
"""Words of a sentence; shorter lines are headings, names and marks."""


def main(reviews: Path, sentences: Path) -> None:
    """Every sentence with at least `SHORTEST` words, in the order of the reviews."""
    texts = [json.loads(line)["text"] for line in reviews.read_text(encoding="utf-8").splitlines()]
    found = [line for text in texts for line in text.split("\n") if len(line.split()) >= SHORTEST]
    rows = "".join(json.dumps({"text": sentence}) + "\n" for sentence in found)
    sentences.write_text(rows, encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
