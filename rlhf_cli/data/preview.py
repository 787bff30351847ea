"""The first training example as the model sees it, its trained tokens marked."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from rich.console import Console
from rich.text import Text

from rlhf_cli.console import logger
from rlhf_cli.data.examples import Examples

MOST = 400
"""Characters of one trained or untrained run that are shown."""

MOST_RUNS = 12


def show_first_example(
    examples: Examples, tokenizer: Any, kind: str = "", *, full: bool = False
) -> None:
    """Print the first example on stderr: trained tokens green on a terminal, else in [[ ]].

    Args:
        examples: rows that were judged are all shown; of others, the first.
        tokenizer: decodes.
        kind: of the records, where each is an example: names the rows.
        full: long texts are not shortened.
    """
    if logger.disabled:
        return
    console = Console(stderr=True)
    names = row_names(examples, kind)
    what = "example" if names else "row"
    console.print(f"first {what} ({examples.where(0)}), trained tokens marked:", highlight=False)
    for row, name in enumerate(names or [""]):
        if name:
            console.print(f"- {name}:", highlight=False)
        shown = preview(examples, tokenizer, row, marks=not console.is_terminal, full=full)
        console.print(shown, soft_wrap=True)


def row_names(examples: Examples, kind: str) -> list[str]:
    """What each row of the first example is, where the rows were judged."""
    if "score" not in examples.columns:
        return []
    scores = examples.columns["score"][: examples.example_starts[1]].tolist()
    if kind == "preference":
        return [f"chosen, margin {scores[0]:.4g}" if scores[0] else "chosen", "rejected"]
    if kind.startswith("labelled"):
        return ["desirable" if scores[0] else "undesirable"]
    return [f"row {i} of {len(scores)}, score {s:.4g}" for i, s in enumerate(scores, start=1)]


def preview(
    examples: Examples, tokenizer: Any, row: int = 0, *, marks: bool, full: bool = False
) -> Text:
    """A row in runs of trained and untrained tokens, long ones shortened unless `full`."""
    span = slice(examples.row_starts[row], examples.row_starts[row + 1])
    pairs = zip(examples.trained[span].tolist(), examples.tokens[span].tolist(), strict=True)
    text = Text()
    for number, (trained, run) in enumerate(groupby(pairs, key=lambda pair: pair[0])):
        if number == MOST_RUNS and not full:
            return text.append(" ...")
        ids = [token for _, token in run]
        text_of_run = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        said = shorten(text_of_run, len(text_of_run) if full else MOST)
        marked = f"[[{said}]]" if marks else said
        text.append(marked if trained else said, style="bold green" if trained else None)
    return text


def shorten(text: str, most: int = MOST) -> str:
    """A text without its middle, if it is long, and without what controls a terminal."""
    half = most // 2
    short = text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in short)
