"""Checks of whole columns, of rows unlike the others, and of how text prompts are joined."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from rlhf_cli.data.checks.content import CheckedData, Text, prompt_and_responses
from rlhf_cli.data.checks.finding import Finding, FoundAt, Tally, excerpt
from rlhf_cli.data.report import MalformedRow, RefusedRow

MIN_ROWS = 20
"""Rows from which on a value that all of them share is worth a note."""

OUTLIER_RATIO, OUTLIER_TOKENS = 10.0, 100
"""A response is unusually long from this many times the median, and this many tokens."""

MAX_RARE_SHARE = 0.2
"""Share of rows up to which a character is unusual in a file."""

_URL = re.compile(r"\s*https?://\S+\s*")
_CLOSING = frozenset(".,;?!:)]}>\"'`")
"""What else than a letter or digit ends a prompt, after which a space is missing."""

_LETTERS = re.compile(r"[^\W\d_]")
MIN_LETTERS = 8
"""Letters of a script in one text, which a name or a formula has not."""


def check_constant_columns(data: CheckedData) -> Iterator[Finding]:
    """Report columns that have the same value in every row."""
    values: dict[str, str | None] = {}
    counts: Counter[str] = Counter()
    rows = 0
    for row in data.rows:
        if isinstance(row.parsed, MalformedRow | RefusedRow):
            continue
        rows += 1
        counts.update([*row.parsed])
        for name, value in row.parsed.items():
            if values.get(name, "") is not None and values.setdefault(name, repr(value)) != repr(
                value
            ):
                values[name] = None
    constant = [name for name, value in values.items() if value and counts[name] == rows]
    if rows < MIN_ROWS or not constant:
        return
    yield Finding(
        code="constant-columns",
        severity="note",
        message="columns with the same value in every row",
        count=len(constant),
        total=len(values),
        unit="column",
        examples=tuple(FoundAt(name, excerpt(str(values[name]))) for name in constant[:3]),
    )


def check_scripts(data: CheckedData) -> Iterator[Finding]:
    """Report rows with a text in another script than most rows of the file."""
    scripts: Counter[str] = Counter()
    found: list[tuple[str, Text, str]] = []
    for location, texts in data.texts:
        named = [(text, main_script(text.text)) for text in texts]
        scripts.update({script for _, script in named if script})
        found += [(location, text, script) for text, script in named if script]
    if len(scripts) < 2:
        return
    [(usual, _)] = scripts.most_common(1)
    tally = Tally()
    for location, text, script in found:
        if script != usual:
            tally.add(location, f"{text.place}, {script}: {excerpt(text.text, None, 40)}")
    yield from tally.report(
        "other-scripts",
        "note",
        f"rows with a text in another script than {usual}",
        data.total,
        advice="Check that the model knows these languages: few of their words are tokens",
    )


def main_script(text: str) -> str:
    """Return the script of most letters of a text, as in `cyrillic`; empty with too few letters.

    Chinese and Japanese letters count as one script.
    """
    if text.isascii():
        return "latin" if len(_LETTERS.findall(text[:200])) >= MIN_LETTERS else ""
    counts = Counter(map(_script, _LETTERS.findall(text[:2000])))
    if not counts:
        return ""
    [(script, number)] = counts.most_common(1)
    # one character of these scripts is a word
    least = MIN_LETTERS // 4 if script in ("cjk", "hangul") else MIN_LETTERS
    return script if number >= least else ""


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    first = unicodedata.name(letter, "other").split(" ")[0].split("-")[0].lower()
    same = {"hiragana": "cjk", "katakana": "cjk", "micro": "latin", "feminine": "latin"}
    return {**same, "masculine": "latin", "fullwidth": "latin"}.get(first, first)


def check_symbols(data: CheckedData) -> Iterator[Finding]:
    """Report rare symbols, tabs in messages, and single letters of other scripts."""
    rows: Counter[str] = Counter()
    where: list[tuple[str, frozenset[str]]] = []
    for location, texts in data.texts:
        found = frozenset(c for text in texts for c in _unusual(text.text))
        rows.update(found)
        where.append((location, found))
    rare = {c: n for c, n in rows.items() if n <= MAX_RARE_SHARE * data.total}
    tally = Tally()
    for location, found in where:
        if listed := sorted(found & rare.keys(), key=lambda c: rare[c]):
            tally.add(location, " ".join(map(_name_character, listed[:3])))
    most = sorted(rare, key=lambda c: -rare[c])[:8]
    named = ", ".join(f"{_name_character(c)} in {rare[c]}" for c in most)
    yield from tally.report(
        "unusual-characters",
        "note",
        f"rows with symbols, tabs or single letters of other scripts that few rows have: {named}",
        data.total,
        advice="Check a few: bullets and symbols of a scraped page are learned as they are",
    )


def _unusual(text: str) -> Iterator[str]:
    """Yield the symbols, tabs and letters of other scripts than Latin of a text."""
    if text.isascii():
        if "\t" in text:
            yield "\t"
        return
    letters = {c for c in text if ord(c) > 126}
    usual = main_script(text)
    for character in letters:
        category = unicodedata.category(character)
        symbol = category in ("So", "Cn") and character != "\ufffd"  # which has its own check
        if symbol or (category.startswith("L") and _script(character) not in ("latin", usual)):
            yield character
    if "\t" in text:
        yield "\t"


def _name_character(character: str) -> str:
    if character == "\t":
        return "tab"
    code = f"U+{ord(character):04X}"
    return f"{character} ({code})" if character.isprintable() else code


def check_long_responses(data: CheckedData) -> Iterator[Finding]:
    """Report responses that are many times longer than the median."""
    if data.examples is None or not len(data.examples) or data.stage == "pretrain":
        return
    lengths = data.trained_tokens
    median = float(np.median(lengths))
    limit = max(OUTLIER_TOKENS, OUTLIER_RATIO * median)
    tally = Tally()
    starts = data.examples.example_starts
    for row in np.flatnonzero(lengths > limit).tolist():
        example = int(np.searchsorted(starts, row, "right")) - 1
        tally.add(data.examples.location(example), f"{lengths[row]} trained tokens")
    yield from tally.report(
        "unusually-long-responses",
        "note",
        f"responses with more than {limit:.0f} tokens; the median is {median:.0f}",
        data.total,
        advice="Check a few: one long row has the weight of many short ones in a mean over tokens",
    )


def check_bare_addresses(data: CheckedData) -> Iterator[Finding]:
    """Report responses that are nothing but a web address."""
    tally = Tally()
    for location, texts in data.texts:
        for text in texts:
            if text.is_response and _URL.fullmatch(text.text):
                tally.add(location, f"{text.place}: {excerpt(text.text)}")
    yield from tally.report(
        "address-as-response",
        "note",
        "responses that are a web address and nothing else",
        data.total,
        advice="Check a few: a model cannot know addresses, and invents them",
    )


def check_empty_prompts(data: CheckedData) -> Iterator[Finding]:
    """Check for rows whose prompt is empty."""
    if data.stage == "pretrain":
        return
    tally = Tally()
    for record in data.records:
        prompt, responses = prompt_and_responses(record.record)
        if hasattr(record.record, "prompt") and not prompt.strip() and not _is_text_row(data):
            tally.add(record.location, excerpt(responses[0]) if responses else "")
    yield from tally.report(
        "empty-prompts",
        "warning",
        "rows whose prompt is empty",
        data.total,
        advice="Fill the prompt or remove the rows: the model learns to say this to anything",
    )


def _is_text_row(data: CheckedData) -> bool:
    """Whether the rows have no prompt by their kind: a text with a label or score."""
    return "_text" in data.report.kind


def check_separators(data: CheckedData) -> Iterator[Finding]:
    """Check for text prompts and responses that are joined without white space."""
    joined, spaced = Tally(), Tally()
    for location, texts in data.texts if data.template != "always" else ():
        if len(texts) < 2 or texts[0].place != "prompt":
            continue
        prompt, response = texts[0].text, texts[1].text
        shown = f"{excerpt(prompt[-30:])}|{excerpt(response[:30])}"
        if prompt[-1:] == " ":
            spaced.add(location, shown)
        elif (prompt[-1:].isalnum() or prompt[-1:] in _CLOSING) and response[:1].isalnum():
            joined.add(location, shown)
    yield from joined.report(
        "no-separator",
        "warning",
        "text prompts to which the response is joined without white space",
        data.total,
        advice=_separator_advice(data.texts[0][1] if joined.count else ()),
    )
    yield from spaced.report(
        "prompt-ends-with-space",
        "note",
        "text prompts that end with a space, which most tokenizers put before the next word",
        data.total,
        advice="Move the space to the begin of the response",
    )


def _separator_advice(texts: Sequence[Text]) -> str:
    keys = [
        f"data.columns.{text.place}=' {{{text.place}}}'"
        for text in texts
        if text.is_response and "[" not in text.place
    ]
    begin = f", as with {' '.join(keys)}" if keys else ""
    return (
        "Use template=always with a chat model, or begin each response with a space or line "
        f"break{begin}"
    )
