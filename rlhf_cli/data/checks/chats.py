"""Checks of messages: order of roles, empty messages, system prompts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from rlhf_cli.data.checks.content import CheckedData
from rlhf_cli.data.checks.finding import Finding, Tally, excerpt
from rlhf_cli.data.records.fields import Message, Messages
from rlhf_cli.data.records.types import (
    ChatRecord,
    PreferenceRecord,
    PromptRecord,
    RankedRecord,
    Record,
)


def messages_of(record: Record) -> Messages:
    """Return the messages of a record with its first response; empty for text."""
    match record:
        case ChatRecord(messages):
            return messages
        case PromptRecord(prompt):
            return prompt if isinstance(prompt, tuple) else ()
        case PreferenceRecord(prompt, response, _):
            pass
        case RankedRecord(prompt, responses):
            response = responses[0]
        case _:
            prompt, response = getattr(record, "prompt", ""), getattr(record, "completion", "")
    if isinstance(prompt, tuple) and isinstance(response, tuple):
        return prompt + response
    return ()


def check_roles(data: CheckedData) -> Iterator[Finding]:
    """Check the order of roles, and who speaks last."""
    repeated, disordered, open_ended, prompts = Tally(), Tally(), Tally(), Tally()
    for record in data.records:
        messages = messages_of(record.record)
        if not messages:
            continue
        if text := _repeated_role(messages):
            repeated.add(record.location, text)
        if text := _misplaced_role(messages):
            disordered.add(record.location, text)
        last = messages[-1]
        is_prompt = isinstance(record.record, PromptRecord)
        if is_prompt and last.role == "assistant":
            prompts.add(record.location, f"assistant: {excerpt(last.content)}")
        if isinstance(record.record, ChatRecord) and last.role != "assistant":
            open_ended.add(record.location, f"{last.role}: {excerpt(last.content)}")
    yield from repeated.report(
        "repeated-roles",
        "warning",
        "chats in which one role speaks twice in a row, which some templates refuse",
        data.total,
        advice="Join such messages, or check whether a turn is missing between them",
    )
    yield from disordered.report(
        "roles-out-of-order",
        "warning",
        "chats whose roles are out of order",
        data.total,
        advice="Begin with system, then user; a tool answers a call of the assistant",
    )
    yield from open_ended.report(
        "last-not-assistant",
        "warning",
        "chats whose last message is not the assistant's; it is read and never answered",
        data.total,
        advice="Remove the last message, or add the answer",
    )
    yield from prompts.report(
        "prompt-ends-with-assistant",
        "warning",
        "prompts whose last message is the assistant's, so that it answers itself",
        data.total,
        advice="End prompts with the user's message",
    )


def _repeated_role(messages: Messages) -> str:
    """Describe the first place where user, system or assistant speaks twice in a row."""
    for index, (one, other) in enumerate(pairwise(messages)):
        if one.role == other.role and one.role != "tool":
            return f"messages {index} and {index + 1} are both of the {one.role}"
    return ""


def _misplaced_role(messages: Messages) -> str:
    """Describe the first message whose role cannot stand where it does; empty for none."""
    for index, message in enumerate(messages):
        if message.role == "system" and index:
            return f"message {index} is of the system, after others"
        if message.role == "tool" and not _follows_call(messages, index):
            return f"message {index} is of a tool, which nobody called"
    first = next((m for m in messages if m.role != "system"), messages[0])
    return (
        f"the first message is of the {first.role}" if first.role in ("assistant", "tool") else ""
    )


def _follows_call(messages: Messages, index: int) -> bool:
    """Whether the messages before a tool's are tools' answers up to an assistant's call."""
    before: Message | None = next((m for m in messages[:index][::-1] if m.role != "tool"), None)
    return before is not None and before.role == "assistant"


def check_empty_messages(data: CheckedData) -> Iterator[Finding]:
    """Check for messages without text."""
    tally = Tally()
    for record in data.records:
        for index, message in enumerate(messages_of(record.record)):
            if not message.content.strip() and not message.extra.get("tool_calls"):
                tally.add(record.location, f"message {index} of the {message.role}")
    yield from tally.report(
        "empty-messages",
        "warning",
        "chats with a message that is only white space",
        data.total,
        advice="Remove the message or the row: the model learns to answer nothing, or with nothing",
    )


def check_system_prompts(data: CheckedData) -> Iterator[Finding]:
    """Report the share of chats with a system prompt if only some have one."""
    with_prompt, total = Tally(), 0
    for record in data.records:
        messages = messages_of(record.record)
        total += bool(messages)
        if messages and messages[0].role == "system":
            with_prompt.add(record.location, excerpt(messages[0].content))
    if with_prompt.count < total:
        yield from with_prompt.report(
            "some-system-prompts",
            "note",
            "chats with a system prompt; the others have none",
            total,
            unit="chat",
            advice="Use the model later as it was trained: with the same system prompt, or without",
        )
