"""Checks of characters: wrong decodings, control characters, markup, special tokens, long lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import unescape
from itertools import pairwise
from typing import Any

from rlhf_cli.data.checks.content import CheckedData, Text
from rlhf_cli.data.checks.finding import Finding, Severity, Tally, excerpt
from rlhf_cli.data.records.fields import TOKEN_BREAK, Message
from rlhf_cli.data.tokens.chat_template import ChatTemplate

ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
"""Terminal control sequences (ECMA-48, 5.3 and 5.4; operating system commands as in xterm)."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
_NOT_ASCII_RUN = re.compile(r"[^\x00-\x7f]{2,}")
_ZERO_WIDTH = re.compile(r"[\u00ad\u180e\u200b\u2060-\u2064\ufeff\u202a-\u202e\u2066-\u2069]")
_DIRECTION = re.compile(r"[\u200e\u200f]")
_RIGHT_TO_LEFT = re.compile(r"[\u0590-\u08ff]")
_SPACES = re.compile(r"[\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f]")
_PRIVATE_USE = re.compile(r"[\ue000-\uf8ff]")
_ENTITY = re.compile(r"&(?:[A-Za-z][A-Za-z0-9]{1,31}|#\d{2,6}|#[xX][0-9A-Fa-f]{2,5});")
_CODE = re.compile(r"```|<\w+[^>]*>|\bhref=|https?://\S*&")
_UNBROKEN = re.compile(r"[^\s]{400,}")
_LONG_LINE = re.compile(r"[^\n]{10000,}")
_MANY_SCRIPTS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")

_LOWERED = {"ã": "Ã"}
"""Lower-casing changes one lead character of a wrong decoding to another letter."""


@dataclass(frozen=True)
class CharacterCheck:
    """A fault of a text that can be seen in the text alone.

    Attributes:
        code: name of the finding.
        severity: of the finding.
        find: returns the index of the first fault in a text, else None.
        message: what was found.
        advice: what to do.
        warn_from: share of the rows from which a note is a warning.
        report_from: share of the rows from which it is reported; single ones are meant so.
    """

    code: str
    severity: Severity
    find: Callable[[str], int | None]
    message: str
    advice: str
    warn_from: float = 2.0
    report_from: float = 0.0


def find_mojibake(text: str) -> int | None:
    """Return the index of the first UTF-8 sequence that was read as Windows-1252 or Latin-1."""
    for run in _NOT_ASCII_RUN.finditer(text):
        for at in range(len(run[0]) - 1):
            if _decodes_otherwise(run[0][at : at + 4]):
                return run.start() + at
    return None


def _decodes_otherwise(window: str) -> bool:
    """Whether a window begins with characters whose bytes are one character in UTF-8."""
    data = b"".join(map(_to_byte, _LOWERED.get(window[0], window[0]) + window[1:]))
    length = 2 if 0xC2 <= data[0] <= 0xDF else 3 if 0xE2 <= data[0] <= 0xEF else 4
    if data[0] < 0xC2 or data[0] > 0xF4 or window[1] in "«»":
        return False
    try:
        decoded = data[:length].decode("utf-8")
    except UnicodeDecodeError:
        return False
    return len(decoded) == 1 and (length > 2 or decoded.isalpha() or ord(decoded) < 0xC0)


def _to_byte(character: str) -> bytes:
    """Return the byte that was read as this character; 0 for none, which no sequence contains."""
    try:
        return character.encode("cp1252")
    except UnicodeEncodeError:
        return bytes([ord(character)]) if ord(character) < 256 else b"\x00"


def find_control(text: str) -> int | None:
    """Return the index of the first control character outside terminal control sequences."""
    ends = [(0, 0), *(found.span() for found in ANSI.finditer(text)), (len(text), len(text))]
    for (_, start), (end, _) in pairwise(ends):
        if found := _CONTROL.search(text, start, end):
            return found.start()
    return None


def find_zero_width(text: str) -> int | None:
    """Return the index of the first invisible character; direction marks belong to some scripts."""
    found = _ZERO_WIDTH.search(text)
    if found is None and not _RIGHT_TO_LEFT.search(text):
        found = _DIRECTION.search(text)
    return found.start() if found else None


def find_entity(text: str) -> int | None:
    """Return the index of the first HTML entity of a text that is not markup or code itself."""
    for found in _ENTITY.finditer(text):
        if unescape(found[0]) != found[0]:
            return None if _CODE.search(text) else found.start()
    return None


def find_escaped_newline(text: str) -> int | None:
    r"""Return the index of the first `\n` of two letters, in a text that has no line break."""
    if "\n" in text or text.count("\\n") < 2:
        return None
    return text.index("\\n")


def find_long_line(text: str) -> int | None:
    """Return the index of the first long run without white space, or very long line."""
    if len(text) < 400:
        return None
    found = _UNBROKEN.search(text)
    if found and not _MANY_SCRIPTS.search(found[0]):  # scripts that put no spaces between words
        return found.start()
    line = _LONG_LINE.search(text)
    return line.start() if line else None


def _finder(pattern: re.Pattern[str]) -> Callable[[str], int | None]:
    def find(text: str) -> int | None:
        found = pattern.search(text)
        return found.start() if found else None

    return find


CHARACTER_CHECKS = (
    CharacterCheck(
        "mojibake",
        "warning",
        find_mojibake,
        "UTF-8 text that was read as Windows-1252 or Latin-1",
        "Decode the source as UTF-8 again; the package ftfy repairs such text",
    ),
    CharacterCheck(
        "replacement-characters",
        "warning",
        _finder(re.compile("\ufffd")),
        "U+FFFD, which a decoder wrote in place of bytes it could not read",
        "Read the source with its own encoding, or leave these rows out",
    ),
    CharacterCheck(
        "control-characters",
        "warning",
        find_control,
        "control characters; U+0080 to U+009F are mostly Windows-1252 text read as Latin-1",
        "Remove them, or read the source with encoding cp1252",
    ),
    CharacterCheck(
        "ansi-escapes",
        "warning",
        _finder(ANSI),
        "terminal control sequences, such as colors",
        "Remove them: the model would learn to write them",
    ),
    CharacterCheck(
        "zero-width-characters",
        "note",
        find_zero_width,
        "invisible characters, such as zero-width spaces and soft hyphens",
        "Remove them: words with them have other tokens",
        warn_from=0.01,
    ),
    CharacterCheck(
        "unusual-whitespace",
        "note",
        _finder(_SPACES),
        "unusual white space, such as no-break spaces",
        "Replace it by plain spaces and line breaks if it has no meaning",
    ),
    CharacterCheck(
        "private-use-characters",
        "note",
        _finder(_PRIVATE_USE),
        "private-use characters, which only one font shows (arrows of Word, for example)",
        "Replace them by the characters they stand for",
    ),
    CharacterCheck(
        "html-entities",
        "note",
        find_entity,
        "HTML entities in plain text, such as &amp;",
        "Decode them, as with html.unescape",
        warn_from=0.01,
    ),
    CharacterCheck(
        "escaped-newlines",
        "note",
        find_escaped_newline,
        r"the two letters \n in texts without a line break",
        "Check whether line breaks were escaped twice",
        report_from=0.01,
    ),
    CharacterCheck(
        "long-lines",
        "note",
        find_long_line,
        "400 characters without white space, or a line of 10,000",
        "Check whether these are encoded files or lost line breaks",
    ),
)


def check_characters(data: CheckedData) -> Iterator[Finding]:
    """Check every text of the records by `CHARACTER_CHECKS`."""
    tallies = {check.code: Tally() for check in CHARACTER_CHECKS}
    for location, texts in data.texts:
        for text in texts:
            for check in CHARACTER_CHECKS:
                at = check.find(text.text)
                if at is not None:
                    shown = f"{text.place}: {excerpt(text.text, at)}"
                    tallies[check.code].add(location, shown)
    for check in CHARACTER_CHECKS:
        tally = tallies[check.code]
        if tally.count < check.report_from * data.total:
            continue
        many = tally.count >= max(3, check.warn_from * data.total)
        severity: Severity = "warning" if many else check.severity
        yield from tally.report(
            check.code, severity, check.message, data.total, advice=check.advice
        )


def check_special_tokens(data: CheckedData) -> Iterator[Finding]:
    """Check for special tokens of the tokenizer that are written out in the rows' texts."""
    pattern = _special_token_pattern(data.tokenizer)
    if pattern is None:
        return
    template = ChatTemplate(data.tokenizer) if data.report.templated else None
    plain, escaped = Tally(), Tally()
    for location, texts in data.texts:
        for text in texts:
            found = pattern.search(_without_own_ends(text, data.tokenizer))
            if found and (template is None or _is_escaped(template, text)):
                shown = f"{text.place}: {excerpt(text.text, text.text.find(found[0]))}"
                (plain if template is None else escaped).add(location, shown)
    yield from plain.report(
        "special-tokens",
        "warning",
        "special tokens of the tokenizer written out in text, which become those tokens",
        data.total,
        advice="Remove them, or use messages or template=always, which keep them as text",
    )
    yield from escaped.report(
        "special-tokens-as-text",
        "note",
        "special tokens of the tokenizer written out in messages; they are tokenized as text",
        data.total,
        advice="Remove them if other programs will read the file: most make tokens of them",
    )


def _is_escaped(template: ChatTemplate, text: Text) -> bool:
    """Whether the loader escapes tokens of a message; marks of a thought keep their meaning."""
    role = "assistant" if text.is_response else "user"
    return TOKEN_BREAK in template.escape((Message(role, text.text),))[0].content


def _special_token_pattern(tokenizer: Any) -> re.Pattern[str] | None:
    """Return a pattern of the special tokens of a tokenizer; None if it has none of two letters."""
    marked = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    listed = {token for token in (*marked, *tokenizer.all_special_tokens) if len(token) > 1}
    longest_first = sorted(listed, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if listed else None


def _without_own_ends(text: Text, tokenizer: Any) -> str:
    """Return a text without the begin and end token that formatting adds where they are missing."""
    found = text.text.strip()
    for name in ("bos_token", "eos_token"):
        token = getattr(tokenizer, name, None)
        if token and name == "bos_token" and not text.is_response:
            found = found.removeprefix(token)
        elif token and text.is_response:
            found = found.removesuffix(token)
    return found
