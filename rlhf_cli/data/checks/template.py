"""Checks of tokenizer and chat template: padding, begin tokens, rewritten turns, thoughts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from rlhf_cli.data.checks.chats import messages_of
from rlhf_cli.data.checks.content import CheckedData
from rlhf_cli.data.checks.finding import Finding, Tally, excerpt
from rlhf_cli.data.records.fields import REASONING_KEYS, Message, Messages
from rlhf_cli.data.records.reader import RecordWithSource
from rlhf_cli.data.records.types import Record
from rlhf_cli.data.report import RefusedRow
from rlhf_cli.data.tokens.chat_template import ChatTemplate
from rlhf_cli.data.tokens.encode import find_special_tokens
from rlhf_cli.data.tokens.format import RowFormatter, to_chat_record
from rlhf_cli.data.tokens.template_checks import THOUGHT_END, contains, remove_whitespace

MAX_CHATS = 500
"""Chats that are rendered turn by turn."""

THOUGHT_BEGIN = "<think>"


def check_padding(data: CheckedData) -> Iterator[Finding]:
    """Report a padding token that is the end token."""
    tokenizer = data.tokenizer
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    yield Finding(
        code="pad-is-eos",
        severity="note",
        message=f"the padding token is the end token {tokenizer.eos_token}; here end tokens are "
        "trained all the same, because rows have lengths and no padding",
        advice="Trainers that mask every padding token never train the end token; give those "
        "another padding token",
    )


def check_begin_token_of_template(data: CheckedData) -> Iterator[Finding]:
    """Report a begin token that both the chat template and the tokenizer write."""
    if not data.report.templated or data.tokenizer.bos_token is None:
        return
    bos = data.tokenizer.bos_token
    try:
        text = ChatTemplate(data.tokenizer).render((Message("user", "a"),), generation_prompt=True)
    except RefusedRow:
        return
    if text.startswith(bos) and data.tokenizer("a")["input_ids"][:1] == [
        data.tokenizer.bos_token_id
    ]:
        yield Finding(
            code="bos-in-template",
            severity="note",
            message=f"the chat template writes {bos} and the tokenizer adds it too; here it stands "
            "once",
            advice="Elsewhere tokenize rendered chats with add_special_tokens=False",
        )


def check_unused_template(data: CheckedData) -> Iterator[Finding]:
    """Report text rows that are joined although the model has a chat template."""
    has_template = bool(data.tokenizer.chat_template) and data.own_template
    if not has_template or data.template != "auto" or data.report.templated or not data.records:
        return
    if data.examples is None or not _fits_messages(data.records[0].record):
        return
    yield Finding(
        code="chat-template-unused",
        severity="note",
        message="the model has a chat template, and the rows are text, which is joined without it",
        count=data.total,
        total=data.total,
        advice="Use template=always for a model that chats, or template=never to leave this out",
    )


def _fits_messages(record: Record) -> bool:
    """Whether a text row can be written as messages."""
    try:
        return to_chat_record(record) is not record
    except RefusedRow:
        return False


def check_rewritten_turns(data: CheckedData) -> Iterator[Finding]:
    """Check that the template renders turns of a chat the same once others follow."""
    if not data.report.templated or not data.tokenizer.chat_template:
        return
    template = ChatTemplate(data.tokenizer)
    tally, examined = Tally(), 0
    for record, messages in _chats(data):
        turns = [i for i, m in enumerate(messages) if m.role == "assistant"]
        if len(turns) < 2 or examined == MAX_CHATS:
            continue
        examined += 1
        try:
            if text := _first_change(template, messages, turns[:-1]):
                tally.add(record.location, text)
        except RefusedRow:
            continue
    sampled = f" (among {examined} chats)" if examined == MAX_CHATS else ""
    yield from tally.report(
        "template-rewrites-turns",
        "warning" if data.cfg.train_on == "response" else "note",
        f"chats whose earlier turns the template writes otherwise once others follow{sampled}; "
        "only their last response is trained",
        examined,
        unit="chat",
        advice="Give a template that keeps earlier turns with model.chat_template=FILE, or ask for "
        "this with data.train_on=last_turn",
    )


def _chats(data: CheckedData) -> Iterator[tuple[RecordWithSource, Messages]]:
    for record in data.records:
        if messages := messages_of(record.record):
            yield record, messages


def _first_change(template: ChatTemplate, messages: Messages, turns: list[int]) -> str:
    """Describe the first place where a whole chat differs from a chat up to a turn."""
    messages = template.escape(messages)
    whole = template.render(messages)
    for turn in turns:
        part = template.render(messages[: turn + 1])
        at = _first_difference(part, whole)
        if _without_tokens(part[at:], template.special_tokens):
            was, becomes = excerpt(part[at:], None, 30), excerpt(whole[at:], None, 30)
            return f'message {turn}: "{was}" becomes "{becomes}"'
    return ""


def _first_difference(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _without_tokens(text: str, tokens: list[str]) -> str:
    """Return the rest of a text without white space and special tokens, as after a last turn."""
    if not tokens:
        return text.strip()
    return re.sub("|".join(map(re.escape, tokens)), "", text).strip()


def has_thought(message: Message) -> bool:
    """Whether an assistant's message has a thought, in its content or beside it."""
    if message.role != "assistant":
        return False
    return THOUGHT_END in message.content or any(message.extra.get(key) for key in REASONING_KEYS)


def check_thoughts(data: CheckedData) -> Iterator[Finding]:
    """Report whether thoughts are trained, and whether the template drops them."""
    chats = [(r, m) for r, m in _chats(data) if any(map(has_thought, m))]
    if not chats or data.examples is None:
        return
    trained, dropped = Tally(), Tally()
    formatter = RowFormatter(data.tokenizer, find_special_tokens(data.tokenizer), data.cfg.train_on)
    for record, messages in chats[:MAX_CHATS]:
        in_loss, whole = _rendered_texts(formatter, record)
        thoughts = [text for m in messages if has_thought(m) for text in _thoughts_of(m)]
        if any(contains(in_loss, text) for text in thoughts):
            trained.add(record.location)
        if missing := [text for text in thoughts if not contains(whole, text)]:
            dropped.add(record.location, excerpt(missing[0]))
    examined = min(len(chats), MAX_CHATS)
    yield from _report_thoughts(data, trained, dropped, examined, len(chats))


def _report_thoughts(
    data: CheckedData, trained: Tally, dropped: Tally, examined: int, rows: int
) -> Iterator[Finding]:
    yield from dropped.report(
        "thoughts-dropped",
        "warning",
        "rows with thoughts that the chat template leaves out, so that they are neither read nor "
        "trained",
        examined,
        advice="Intended for earlier turns; else give a template that keeps them with "
        "model.chat_template=FILE",
    )
    yield Finding(
        code="thoughts",
        severity="note",
        message=f"rows with thoughts of the assistant; trained in {trained.count} of {examined}",
        count=rows,
        total=data.total,
        advice="Rows with and without thoughts teach both; separate them if that is not wanted"
        if rows < data.total
        else "",
    )


def _thoughts_of(message: Message) -> Iterator[str]:
    """Yield the thoughts of a message, without their marks."""
    if THOUGHT_END in message.content:
        yield message.content.rpartition(THOUGHT_END)[0].removeprefix(THOUGHT_BEGIN).strip()
    for key in REASONING_KEYS:
        if isinstance(value := message.extra.get(key), str) and value:
            yield value


def _rendered_texts(formatter: RowFormatter, record: RecordWithSource) -> tuple[str, str]:
    """Return the text in the loss and the whole text of a row, without white space."""
    try:
        rows = formatter.format(to_chat_record(record.record))
    except RefusedRow:
        return "", ""
    segments: list[Any] = [segment for row in rows for segment in row.segments]
    in_loss = "".join(segment.text for segment in segments if segment.in_loss)
    return remove_whitespace(in_loss), remove_whitespace("".join(s.text for s in segments))


def check_open_thoughts(data: CheckedData) -> Iterator[Finding]:
    """Check for thoughts that begin and do not end."""
    tally = Tally()
    for location, texts in data.texts:
        for text in texts:
            if text.is_response and text.text.count(THOUGHT_BEGIN) > text.text.count(THOUGHT_END):
                tally.add(
                    location, f"{text.place}: {excerpt(text.text, text.text.rfind('<think>'))}"
                )
    yield from tally.report(
        "open-thoughts",
        "warning",
        "responses with a thought that begins and does not end",
        data.total,
        advice="Remove these rows: their answer is missing",
    )
