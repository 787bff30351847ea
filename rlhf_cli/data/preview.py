"""The first training row as the model sees it, its trained tokens marked."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from rich.console import Console
from rich.text import Text

from rlhf_cli.data.examples import Examples

MOST = 400
"""Characters of one trained or untrained run that are shown."""

MOST_RUNS = 12


def show_first_example(examples: Examples, tokenizer: Any) -> None:
    """Print the first row on stderr: trained tokens green on a terminal, else in [[ ]]."""
    console = Console(stderr=True)
    shown = preview(examples, tokenizer, marks=not console.is_terminal)
    console.print(f"first row ({examples.where(0)}), trained tokens marked:", highlight=False)
    console.print(shown, soft_wrap=True)


def preview(examples: Examples, tokenizer: Any, *, marks: bool) -> Text:
    """The first row in runs of trained and untrained tokens, long ones shortened."""
    end = int(examples.row_starts[1])
    pairs = zip(examples.trained[:end].tolist(), examples.tokens[:end].tolist(), strict=True)
    text = Text()
    for number, (trained, run) in enumerate(groupby(pairs, key=lambda pair: pair[0])):
        if number == MOST_RUNS:
            return text.append(" ...")
        ids = [token for _, token in run]
        said = shorten(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        marked = f"[[{said}]]" if marks else said
        text.append(marked if trained else said, style="bold green" if trained else None)
    return text


def shorten(text: str, most: int = MOST) -> str:
    """A text without its middle, if it is long, and without what controls a terminal."""
    half = most // 2
    short = text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in short)
