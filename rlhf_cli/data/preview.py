"""Preview of the first training example as text, with the tokens in the loss marked."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from rich.console import Console
from rich.text import Text

from rlhf_cli.console import MAX_CHARACTERS, logger
from rlhf_cli.console import shorten as shorten
from rlhf_cli.data.examples import Examples

MAX_RUNS = 12


def show_first_example(
    examples: Examples, tokenizer: Any, kind: str = "", *, full: bool = False
) -> None:
    """Print the first example to stderr: tokens in the loss green on a terminal, else in [[ ]].

    Args:
        examples: examples; of preference data all rows are shown, else the first row.
        tokenizer: decodes the tokens.
        kind: record kind, which names the rows; empty if the examples were transformed.
        full: show long texts completely.
    """
    if logger.disabled:
        return
    console = Console(stderr=True)
    names = row_names(examples, kind)
    what = "example" if names else "row"
    console.print(f"first {what} ({examples.location(0)}), trained tokens marked:", highlight=False)
    for row, name in enumerate(names or [""]):
        if name:
            console.print(f"- {name}:", highlight=False)
        shown = preview(examples, tokenizer, row, marks=not console.is_terminal, full=full)
        console.print(shown, soft_wrap=True)


def row_names(examples: Examples, kind: str) -> list[str]:
    """Return a name for each row of the first example of preference data; else nothing."""
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
    """Return a row as runs of tokens in and outside the loss, shortened unless `full`."""
    span = slice(examples.row_starts[row], examples.row_starts[row + 1])
    pairs = zip(examples.loss_mask[span].tolist(), examples.tokens[span].tolist(), strict=True)
    text = Text()
    for number, (in_loss, run) in enumerate(groupby(pairs, key=lambda pair: pair[0])):
        if number == MAX_RUNS and not full:
            return text.append(" ...")
        ids = [token for _, token in run]
        decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        shown = shorten(decoded, len(decoded) if full else MAX_CHARACTERS)
        marked = f"[[{shown}]]" if marks else shown
        text.append(marked if in_loss else shown, style="bold green" if in_loss else None)
    return text
