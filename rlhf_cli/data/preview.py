"""Token rows as text: spans of tokens in and outside the loss, for terminals and other formats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.text import Text

from rlhf_cli.console import logger
from rlhf_cli.data.examples import Examples

MAX_CHARACTERS = 400
"""Characters that are shown of one span."""

MAX_RUNS = 12
"""Runs of tokens in or outside the loss that are shown of a row."""

TRAINED_STYLE, SPECIAL_STYLE, TRAINED_SPECIAL_STYLE = "bold green", "dim", "green"


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one kind, as text.

    Attributes:
        start: index of the first token in its row.
        end: index after the last token.
        text: the tokens as they are decoded within the row.
        trained: whether the tokens are targets of the loss.
        special: whether they are special tokens, such as those around turns.
    """

    start: int
    end: int
    text: str
    trained: bool
    special: bool


class SpanDecoder:
    """Decodes token rows in spans.

    Args:
        tokenizer: fast tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        marked = {int(token) for token, facts in added if facts.special}
        self.special = marked | {int(token) for token in tokenizer.all_special_ids}

    def decode(self, tokens: Sequence[int]) -> str:
        """Return tokens as text, special tokens included."""
        text: str = self.tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)
        return text

    def spans(self, tokens: Sequence[int], trained: Sequence[bool], border: int = 0) -> list[Span]:
        """Split a row into spans.

        A span is decoded after the span before it: alone, some tokenizers drop its first space.

        Args:
            tokens: token ids of the row.
            trained: whether each is a target of the loss.
            border: index of a token that begins a span in any case.
        """
        kinds = [
            (at < border, bool(in_loss), token in self.special)
            for at, (token, in_loss) in enumerate(zip(tokens, trained, strict=True))
        ]
        found: list[Span] = []
        before = start = 0
        for (_, in_loss, special), run in groupby(kinds):
            end = start + len(list(run))
            text = self._decode_after(tokens, before, start, end)
            found.append(Span(start, end, text, in_loss, special))
            before, start = start, end
        return found

    def _decode_after(self, tokens: Sequence[int], before: int, start: int, end: int) -> str:
        context, whole = self.decode(tokens[before:start]), self.decode(tokens[before:end])
        if whole.startswith(context):
            return whole[len(context) :]
        return self.decode(tokens[start:end])


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
    scores = examples.columns.get("score")
    first = [] if scores is None else scores[: examples.example_starts[1]].tolist()
    names = row_names(kind, first)
    what = "example" if names else "row"
    console.print(f"first {what} ({examples.location(0)}), trained tokens marked:", highlight=False)
    decoder = SpanDecoder(tokenizer)
    for row, name in enumerate(names or [""]):
        if name:
            console.print(f"- {name}:", highlight=False)
        span = slice(examples.row_starts[row], examples.row_starts[row + 1])
        spans = decoder.spans(examples.tokens[span].tolist(), examples.loss_mask[span].tolist())
        shown = render_spans(spans, marks=not console.is_terminal, full=full)
        console.print(shown, soft_wrap=True)


def row_names(kind: str, scores: Sequence[float]) -> list[str]:
    """Return a name for each row of an example of preference data; else nothing.

    Args:
        kind: record kind; empty if unknown.
        scores: score of each row; empty for other data.
    """
    if not scores:
        return []
    if kind == "preference":
        return [f"chosen, margin {scores[0]:.4g}" if scores[0] else "chosen", "rejected"]
    if kind.startswith("labelled"):
        return ["desirable" if scores[0] else "undesirable"]
    return [f"row {i} of {len(scores)}, score {s:.4g}" for i, s in enumerate(scores, start=1)]


def render_spans(
    spans: Iterable[Span], *, marks: bool, full: bool = False, visible: bool = False
) -> Text:
    """Return spans as text for a terminal, shortened unless `full`.

    Args:
        spans: of one row.
        marks: put tokens in the loss in [[ ]].
        full: show everything.
        visible: show line ends, and spaces at the borders of spans.
    """
    text = Text()
    for number, (in_loss, run) in enumerate(groupby(spans, key=lambda span: span.trained)):
        if number == MAX_RUNS and not full:
            return text.append(" ...")
        text.append("[[" if marks and in_loss else "", TRAINED_STYLE)
        for span in run:
            shown = shorten(span.text, len(span.text) if full else MAX_CHARACTERS)
            text.append_text(_show_space(shown, span) if visible else Text(shown, _style(span)))
        text.append("]]" if marks and in_loss else "", TRAINED_STYLE)
    return text


def _style(span: Span) -> str:
    if span.special:
        return TRAINED_SPECIAL_STYLE if span.trained else SPECIAL_STYLE
    return TRAINED_STYLE if span.trained else ""


def _show_space(shown: str, span: Span) -> Text:
    """Mark line ends, and the spaces at both ends of a span."""
    core = shown.strip(" ")
    lead = len(shown) - len(shown.lstrip(" ")) if core else len(shown)
    trail = len(shown) - lead - len(core)
    text = Text().append("·" * lead, "dim")
    for part in _split_lines(core):
        text.append("↵\n" if part == "\n" else part, "dim" if part == "\n" else _style(span))
    return text.append("·" * trail, "dim")


def _split_lines(text: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n")):
        if number:
            yield "\n"
        yield line


def shorten(text: str, max_characters: int = MAX_CHARACTERS) -> str:
    """Remove the middle of a long text, and escape terminal control characters."""
    half = max_characters // 2
    short = text if len(text) <= max_characters else f"{text[:half]} ... {text[-half:]}"
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in short)
