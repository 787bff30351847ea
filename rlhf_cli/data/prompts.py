"""Prompts to answer: read from files, with what else their rows say, and as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf_cli.context import say
from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.records.fields import Message, Prompt
from rlhf_cli.data.records.reader import Located, RecordReader
from rlhf_cli.data.records.types import ChatRecord, PromptCompletionRecord, PromptRecord
from rlhf_cli.data.report import DataReport, Refused, count
from rlhf_cli.data.sources.mixture import Mixture, open_held_out, open_sources, open_training
from rlhf_cli.data.tokens.chat import ChatRenderer
from rlhf_cli.data.tokens.encode import Piece, PieceEncoder, find_specials, opening_of
from rlhf_cli.errors import DataError, first_line
from rlhf_cli.runs import artifact
from rlhf_cli.runs.files import read_lines


def becomes_message(template: str, model: str, revision: str, tokenizer: Any) -> bool:
    """Whether a text prompt is a user's message in the chat template.

    Args:
        template: `always`, `never`, or `auto`: as in the rows that the model was trained on, and
            where that is not known, wherever there is a template.
        model: its path, or a run's, or a hub id.
        revision: of a hub id.
        tokenizer: perhaps with a template.
    """
    if template != "auto":
        return template == "always"
    folder = artifact.local_folder(model, revision)
    facts = artifact.read(folder) if folder else {}
    return bool(tokenizer.chat_template) and facts.get("trained_on") != "text"


class PromptEncoder:
    """Writes prompts as the token ids after which a response begins.

    Args:
        tokenizer: its template is used for messages, and for text `as_message`.
        as_message: text is a user's message; else it stands as it is, with only the tokens that the
            tokenizer itself puts in front. An empty text is the start of a document.
    """

    def __init__(self, tokenizer: Any, *, as_message: bool) -> None:
        self.tokenizer = tokenizer
        self.specials = find_specials(tokenizer)
        self.pieces = PieceEncoder(tokenizer)
        self.as_message = as_message

    @cached_property
    def renderer(self) -> ChatRenderer:
        """Made when the first chat comes: text needs no template."""
        return ChatRenderer(self.tokenizer)

    def as_given(self, prompt: Prompt) -> Prompt:
        """What is written as tokens: the prompt itself, or a text as a user's message."""
        if isinstance(prompt, str) and self.as_message:
            return (Message("user", prompt),)
        return prompt

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of one prompt.

        Raises:
            Refused: the chat template does not take it, or leaves out a part of it.
            ModelError: messages, and the tokenizer has no chat template.
        """
        prompt = self.as_given(prompt)
        if isinstance(prompt, str):
            ids = self._ids((Piece(prompt),))
            return [*opening_of(self.specials.opening, ids), *ids] or [self.specials.document_start]
        return self._ids(self.renderer.prompt(prompt))

    @property
    def used_template(self) -> bool:
        """Whether any prompt so far was a chat."""
        return "renderer" in vars(self)

    @property
    def turn_end(self) -> int | None:
        """The token that ends a response to a chat; none where no prompt so far was one."""
        token = self.renderer.template.turn_end if self.used_template else ""
        return int(self.tokenizer.convert_tokens_to_ids(token)) if token else None

    @property
    def unwritten(self) -> list[str]:
        """What the template did not write of messages that were taken all the same."""
        return self.renderer.checker.unwritten if self.used_template else []

    def _ids(self, pieces: tuple[Piece, ...]) -> list[int]:
        [parts] = self.pieces.encode([pieces])
        return [token for part in parts for token in part]


RECORDS = (PromptRecord, PromptCompletionRecord, ChatRecord)
"""What has a prompt; the assistant's last turn of a chat is left out."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts of a data set.

    Attributes:
        prompts: text or messages.
        columns: name -> a value for each, of every other column; none where a row has none.
        places: `file:line` of each.
        report: what became of the rows.
    """

    prompts: Sequence[Prompt]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    places: Sequence[str] = ()
    report: DataReport = field(default_factory=DataReport)

    def __len__(self) -> int:
        return len(self.prompts)

    def where(self, index: int) -> str:
        """A prompt's `file:line`; its number where it comes from no file."""
        return self.places[index] if self.places else f"prompt {index + 1}"

    def columns_of(self, chosen: Sequence[int]) -> dict[str, list[Any]]:
        """The other columns of some prompts."""
        return {name: [values[i] for i in chosen] for name, values in self.columns.items()}

    def part(self, chosen: Sequence[int]) -> PromptSet:
        """Some of the prompts; one may be chosen several times."""
        return PromptSet(
            [self.prompts[i] for i in chosen],
            self.columns_of(chosen),
            [self.places[i] for i in chosen] if self.places else (),
            self.report,
        )


def load_training_prompts(cfg: DataConfig, stage: str, seed: int) -> PromptSet:
    """The prompts of `data.path`.

    Args:
        cfg: which rows.
        stage: names the shipped rows, and stands in errors.
        seed: of the draw from sources with a weight that is no whole number.

    Raises:
        DataError: the rows cannot be read, or none has a prompt.
    """
    return _read(open_training(cfg, stage, seed), cfg, stage)


def load_held_out_prompts(cfg: DataConfig, stage: str) -> PromptSet | None:
    """The prompts that `data.eval` names or counts, or none; as `load_training_prompts`."""
    rows = open_held_out(cfg, stage)
    return None if rows is None else _read(rows, cfg, stage)


def load_prompts(path: str) -> PromptSet:
    """The prompts of a file: a `.txt` has one a line, others a `prompt` or `messages` column.

    Raises:
        DataError: the file has no prompt, or malformed rows.
    """
    if Path(path).suffix.lower() == ".txt":
        lines = [line for line in _lines(path) if line.strip()]
        if not lines:
            raise DataError(f"{path}: no prompt in it; need at least one")
        return PromptSet(lines)
    cfg = DataConfig(path=path)
    return _read(Mixture(open_sources(cfg, path, "ppo", "test"), [None]), cfg, "generate")


def _lines(path: str) -> list[str]:
    try:
        return read_lines(Path(path).expanduser())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {first_line(error)}") from error


def _read(mixture: Mixture, cfg: DataConfig, stage: str) -> PromptSet:
    names = tuple(name for source in mixture.sources for name in source.names)
    report = DataReport(names, sha256=mixture.content)
    settings = [source.settings for source in mixture.sources]
    reader = RecordReader(cfg, stage, RECORDS, report, settings)
    found = list(reader.read(mixture.rows()))
    shown = names[0] if len(names) == 1 else f"{len(names)} files"
    if not found:
        head = f"{shown}: no prompt in it; need at least one"
        raise DataError("\n".join([head, *report.left_out()]))
    report.kept = report.examples = len(found)
    report.ignored_columns = []  # they are not: rewards can read them
    say(f"{shown}: {count(len(found), 'prompt')} of {count(report.rows, 'row')}")
    for line in report.left_out():
        say(line)
    rows = [_others(located) for located in found]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return PromptSet(
        [_prompt(located) for located in found],
        {name: [row.get(name) for row in rows] for name in columns},
        [located.where for located in found],
        report,
    )


def _prompt(located: Located) -> Prompt:
    match located.record:
        case PromptRecord(prompt) | PromptCompletionRecord(prompt, _):
            return prompt
        case ChatRecord(messages):
            return messages[:-1] if messages[-1].role == "assistant" else messages
    raise TypeError(type(located.record))


def _others(located: Located) -> dict[str, Any]:
    """What a row says beside its prompt; the completion of a pair too."""
    match located.record:
        case PromptCompletionRecord(_, completion) if isinstance(completion, str):
            return {"completion": completion, **located.rest}
    asked = _prompt(located)
    listed = list(asked[0].tools) if not isinstance(asked, str) else []
    return {"tools": listed, **located.rest} if listed else dict(located.rest)


def encode_prompts(
    found: PromptSet, encoder: PromptEncoder, most: int, truncation: str
) -> tuple[PromptSet, list[list[int]]]:
    """Token ids of prompts, at most so many of each.

    Args:
        found: read from files.
        encoder: writes a prompt as tokens.
        most: tokens of a prompt.
        truncation: `refuse` leaves longer prompts out; anything else drops their oldest tokens, not
            a beginning-of-text token.

    Returns:
        The prompts that are left, and the tokens of each.

    Raises:
        DataError: none is left.
    """
    found, tokens = encode_all(found, encoder)
    long = [len(ids) > most for ids in tokens]
    if not any(long):
        return found, tokens
    if truncation != "refuse":
        say(f"  {sum(long)} prompts lose their oldest tokens: longer than {most}")
        return found, [_newest(ids, most, encoder.specials.bos) for ids in tokens]
    kept = [index for index, is_long in enumerate(long) if not is_long]
    say(f"  refused: {sum(long)} prompts, longer than {most} tokens")
    if not kept:
        raise DataError(f"data.path: all {len(found)} prompts are longer than {most} tokens")
    return found.part(kept), [tokens[i] for i in kept]


def encode_all(found: PromptSet, encoder: PromptEncoder) -> tuple[PromptSet, list[list[int]]]:
    """The prompts that the chat template takes, with the tokens of each; others are counted.

    Raises:
        DataError: none is left.
    """
    kept, tokens, report = [], [], DataReport()
    for index, prompt in enumerate(found.prompts):
        try:
            tokens.append(encoder.encode(prompt))
        except Refused as error:
            report.add_refused(found.where(index), str(error))
        else:
            kept.append(index)
    report.unwritten = encoder.unwritten
    if not kept:
        raise DataError("\n".join(["no prompt can be used", *report.left_out()]))
    for line in [*report.left_out(), *report.remarks()]:
        say(line)
    found.report.refused |= report.refused
    return (found if len(kept) == len(found) else found.part(kept)), tokens


def _newest(ids: list[int], most: int, bos: int | None) -> list[int]:
    if len(ids) <= most:
        return ids
    head = ids[:1] if ids[0] == bos and most > 1 else []
    return head + ids[len(ids) - most + len(head) :]
