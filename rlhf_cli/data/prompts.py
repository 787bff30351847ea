"""Prompts for generation: read them with the other columns of their rows, and tokenize them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf_cli.console import logger
from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.dataset import read_records
from rlhf_cli.data.records.fields import Message, Prompt
from rlhf_cli.data.records.reader import RecordWithSource
from rlhf_cli.data.records.types import ChatRecord, PromptCompletionRecord, PromptRecord, Record
from rlhf_cli.data.report import DataReport, RefusedRow, pluralize
from rlhf_cli.data.sources.mixture import (
    Mixture,
    open_held_out_data,
    open_sources,
    open_training_data,
)
from rlhf_cli.data.tokens.chat import ChatRenderer
from rlhf_cli.data.tokens.encode import Segment, SegmentEncoder, find_special_tokens, missing_prefix
from rlhf_cli.errors import DataError, first_line
from rlhf_cli.runs import artifact
from rlhf_cli.runs.run_files import read_lines

PROMPT_RECORDS = (PromptRecord, PromptCompletionRecord, ChatRecord)
"""Record classes with a prompt; of a chat, the messages before the assistant's last are one."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts of a data set.

    Attributes:
        prompts: text or messages.
        columns: name -> a value per prompt, of every other column; None if a row has no value.
        locations: `file:line` of each prompt.
        report: counts of the rows.
    """

    prompts: Sequence[Prompt]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    locations: Sequence[str] = ()
    report: DataReport = field(default_factory=DataReport)

    def __len__(self) -> int:
        return len(self.prompts)

    def location(self, index: int) -> str:
        """Return `file:line` of a prompt, or its number if it comes from no file."""
        return self.locations[index] if self.locations else f"prompt {index + 1}"

    def select_columns(self, indices: Sequence[int]) -> dict[str, list[Any]]:
        """Return the other columns of some prompts."""
        return {name: [values[i] for i in indices] for name, values in self.columns.items()}

    def select(self, indices: Sequence[int]) -> PromptSet:
        """Return some of the prompts; an index may occur several times."""
        return PromptSet(
            [self.prompts[i] for i in indices],
            self.select_columns(indices),
            [self.locations[i] for i in indices] if self.locations else (),
            self.report,
        )


def load_training_prompts(cfg: DataConfig, stage: str, seed: int) -> PromptSet:
    """Load the prompts of `data.path`.

    Args:
        cfg: data configuration.
        stage: name of the stage, which selects the shipped rows and is named in errors.
        seed: seed of the sampling from sources whose weight is not a whole number.

    Raises:
        DataError: the rows cannot be read, or none has a prompt.
    """
    return read_prompts(open_training_data(cfg, stage, seed), cfg, stage)


def load_held_out_prompts(cfg: DataConfig, stage: str) -> PromptSet | None:
    """Load the prompts that `data.eval` names or counts; None if there are none.

    Arguments and errors are those of `load_training_prompts`.
    """
    mixture = open_held_out_data(cfg, stage)
    return None if mixture is None else read_prompts(mixture, cfg, stage)


def load_prompts(path: str) -> PromptSet:
    """Load the prompts of a file: a `.txt` has one per line, others a `prompt` or `messages`.

    Raises:
        DataError: the file has no prompt, or malformed rows.
    """
    if Path(path).suffix.lower() == ".txt":
        lines = [line for line in _read_text_lines(path) if line.strip()]
        if not lines:
            raise DataError(f"{path}: no prompt in it; need at least one")
        return PromptSet(lines)
    cfg = DataConfig(path=path)
    return read_prompts(Mixture(open_sources(cfg, path, "ppo", "test"), [None]), cfg, "generate")


def _read_text_lines(path: str) -> list[str]:
    try:
        return read_lines(Path(path).expanduser())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {first_line(error)}") from error


def read_prompts(mixture: Mixture, cfg: DataConfig, stage: str) -> PromptSet:
    """Read the prompts of a mixture, with the other columns of their rows.

    Raises:
        DataError: none has a prompt, or too many rows are malformed.
    """
    report = DataReport(mixture.files, sha256=mixture.fingerprint)
    records = list(read_records(mixture, cfg, stage, PROMPT_RECORDS, report))
    if not records:
        head = f"{mixture.label}: no prompt in it; need at least one"
        raise DataError("\n".join([head, *report.left_out_lines()]))
    report.kept = report.examples = len(records)
    report.ignored_columns = []  # reward functions read them
    logger.info(
        f"{mixture.label}: {pluralize(len(records), 'prompt')} of {pluralize(report.rows, 'row')}"
    )
    for line in report.left_out_lines():
        logger.info(line)
    rows = [_other_columns(record) for record in records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return PromptSet(
        [prompt_of(record.record) for record in records],
        {name: [row.get(name) for row in rows] for name in names},
        [record.location for record in records],
        report,
    )


def prompt_of(record: Record) -> Prompt:
    """Return the prompt of one of `PROMPT_RECORDS`."""
    match record:
        case PromptRecord(prompt) | PromptCompletionRecord(prompt, _):
            return prompt
        case ChatRecord(messages):
            return messages[:-1] if messages[-1].role == "assistant" else messages
    raise TypeError(type(record))


def _other_columns(record: RecordWithSource) -> dict[str, Any]:
    """Return the columns of a row beside its prompt, among them a text completion."""
    match record.record:
        case PromptCompletionRecord(_, completion) if isinstance(completion, str):
            return {"completion": completion, **record.extra_columns}
    prompt = prompt_of(record.record)
    tools = list(prompt[0].tools) if not isinstance(prompt, str) else []
    return {"tools": tools, **record.extra_columns} if tools else dict(record.extra_columns)


def uses_chat_template(template: str, model: str, revision: str, tokenizer: Any) -> bool:
    """Whether a text prompt is rendered as a user message by the chat template.

    Args:
        template: `always`, `never`, or `auto`. `auto` follows the rows that the model was trained
            on; if these are unknown, the chat template is used if there is one.
        model: path of a model or run, or hub id.
        revision: revision of a hub id.
        tokenizer: tokenizer, with or without a chat template.
    """
    if template != "auto":
        return template == "always"
    folder = artifact.find_model_folder(model, revision)
    facts = artifact.read(folder) if folder else {}
    return bool(tokenizer.chat_template) and facts.get("trained_on") != "text"


class PromptEncoder:
    """Encodes prompts as the token ids after which a response begins.

    Args:
        tokenizer: its chat template renders messages, and text if `as_message`.
        as_message: text is a user message; else it is tokenized as it is, with the tokens that the
            tokenizer adds before text. An empty text is the start of a document.
    """

    def __init__(self, tokenizer: Any, *, as_message: bool) -> None:
        self.tokenizer = tokenizer
        self.special_tokens = find_special_tokens(tokenizer)
        self.segment_encoder = SegmentEncoder(tokenizer)
        self.as_message = as_message

    @cached_property
    def renderer(self) -> ChatRenderer:
        """Chat renderer, created at the first chat: text needs no chat template."""
        return ChatRenderer(self.tokenizer)

    def to_messages(self, prompt: Prompt) -> Prompt:
        """Return the prompt that is tokenized: a user message for text if `as_message`."""
        if isinstance(prompt, str) and self.as_message:
            return (Message("user", prompt),)
        return prompt

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the token ids of a prompt.

        Raises:
            RefusedRow: the chat template does not accept it, or leaves out a part of it.
            ModelError: the prompt is messages, and the tokenizer has no chat template.
        """
        prompt = self.to_messages(prompt)
        if not isinstance(prompt, str):
            return self._encode_segments(self.renderer.render_prompt(prompt))
        ids = self._encode_segments((Segment(prompt),))
        prefix = missing_prefix(self.special_tokens.prefix, ids)
        return [*prefix, *ids] or [self.special_tokens.document_start]

    @property
    def used_template(self) -> bool:
        """Whether any prompt was rendered by the chat template."""
        return "renderer" in vars(self)

    @property
    def turn_end(self) -> int | None:
        """Token that ends a response to a chat; None if no prompt was a chat."""
        token = self.renderer.template.turn_end if self.used_template else ""
        return int(self.tokenizer.convert_tokens_to_ids(token)) if token else None

    @property
    def unwritten(self) -> list[str]:
        """Parts of accepted messages that the chat template did not render."""
        return self.renderer.checker.unwritten if self.used_template else []

    def _encode_segments(self, segments: tuple[Segment, ...]) -> list[int]:
        [ids] = self.segment_encoder.encode([segments])
        return [token for segment in ids for token in segment]


def encode_prompts(
    prompts: PromptSet, encoder: PromptEncoder, max_length: int, truncation: str
) -> tuple[PromptSet, list[list[int]]]:
    """Tokenize prompts to at most `max_length` tokens each.

    Args:
        prompts: prompts to tokenize.
        encoder: encodes one prompt.
        max_length: tokens of a prompt.
        truncation: `refuse` leaves longer prompts out; other values drop their oldest tokens, but
            not a beginning-of-sequence token.

    Returns:
        The remaining prompts, and the token ids of each.

    Raises:
        DataError: no prompt remains.
    """
    prompts, tokens = encode_every_prompt(prompts, encoder)
    too_long = [len(ids) > max_length for ids in tokens]
    if not any(too_long):
        return prompts, tokens
    if truncation != "refuse":
        logger.info(f"  {sum(too_long)} prompts lose their oldest tokens: longer than {max_length}")
        bos = encoder.special_tokens.bos
        return prompts, [drop_oldest(ids, max_length, bos) for ids in tokens]
    kept = [index for index, is_long in enumerate(too_long) if not is_long]
    logger.info(f"  refused: {sum(too_long)} prompts, longer than {max_length} tokens")
    if not kept:
        raise DataError(
            f"data.path: all {len(prompts)} prompts are longer than {max_length} tokens"
        )
    return prompts.select(kept), [tokens[i] for i in kept]


def encode_every_prompt(
    prompts: PromptSet, encoder: PromptEncoder
) -> tuple[PromptSet, list[list[int]]]:
    """Tokenize the prompts that the chat template accepts; the others are reported.

    Returns:
        The accepted prompts, and the token ids of each.

    Raises:
        DataError: no prompt remains.
    """
    kept, tokens, report = [], [], DataReport()
    for index, prompt in enumerate(prompts.prompts):
        try:
            tokens.append(encoder.encode(prompt))
        except RefusedRow as error:
            report.add_refused(prompts.location(index), str(error))
        else:
            kept.append(index)
    report.unwritten = encoder.unwritten
    if not kept:
        raise DataError("\n".join(["no prompt can be used", *report.left_out_lines()]))
    for line in [*report.left_out_lines(), *report.note_lines()]:
        logger.info(line)
    prompts.report.refused |= report.refused
    return (prompts if len(kept) == len(prompts) else prompts.select(kept)), tokens


def drop_oldest(ids: list[int], max_length: int, bos: int | None) -> list[int]:
    """Drop the oldest tokens of a prompt that is too long, but not a leading `bos`."""
    if len(ids) <= max_length:
        return ids
    head = ids[:1] if ids[0] == bos and max_length > 1 else []
    return head + ids[len(ids) - max_length + len(head) :]
