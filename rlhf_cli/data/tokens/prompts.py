"""Prompts: read from a file, and as the token ids that a model continues."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_cli.context import say
from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.reading.opening import open_sources
from rlhf_cli.data.records.fields import Message, Prompt
from rlhf_cli.data.records.reader import RecordReader
from rlhf_cli.data.records.record import ChatRecord, PromptCompletionRecord, PromptRecord
from rlhf_cli.data.records.row_errors import Refused
from rlhf_cli.data.report import DataReport
from rlhf_cli.data.tokens.chat import ChatRenderer
from rlhf_cli.data.tokens.pieces import Piece
from rlhf_cli.data.tokens.specials import find_specials
from rlhf_cli.data.tokens.tokenize import PieceEncoder
from rlhf_cli.errors import DataError, first_line

RECORDS = (PromptRecord, PromptCompletionRecord, ChatRecord)


def load_prompts(path: str) -> list[Prompt]:
    """The prompts of a file: a `.txt` has one a line, others a `prompt` or `messages` column.

    The assistant's last turn of a chat and the completion of a pair are left out.

    Raises:
        DataError: the file has no prompt, or malformed rows.
    """
    if Path(path).suffix.lower() == ".txt":
        prompts: list[Prompt] = [line for line in _text(path).splitlines() if line.strip()]
    else:
        prompts = list(_from_rows(path))
    if not prompts:
        raise DataError(f"{path}: no prompt in it; need at least one")
    return prompts


def _text(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {first_line(error)}") from error


def _from_rows(path: str) -> Iterator[Prompt]:
    cfg = DataConfig(path=path)
    [source] = open_sources(cfg, path, "ppo", "test")
    report = DataReport(source.names)
    for located in RecordReader(cfg, "generate", RECORDS, report).read(source.rows()):
        match located.record:
            case PromptRecord(prompt) | PromptCompletionRecord(prompt, _):
                yield prompt
            case ChatRecord(messages):
                spoken = messages[-1].role == "assistant"
                yield messages[:-1] if spoken else messages
    refused = sum(refusal.rows for refusal in report.refused.values())
    say(f"{Path(path).name}: {report.rows - refused} prompts, {refused} rows refused")


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

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of one prompt.

        Raises:
            DataError: the chat template does not take it.
            ModelError: messages, and the tokenizer has no chat template.
        """
        if isinstance(prompt, str):
            if not self.as_message:
                found = [*self.specials.opening, *self._ids((Piece(prompt),))]
                return found or [self.specials.document_start]
            prompt = (Message("user", prompt),)
        try:
            renderer = ChatRenderer(self.tokenizer)
            text = renderer.render(prompt, generation_prompt=True)
            return self._ids(renderer.pieces(prompt, text, trained=()))
        except Refused as error:
            raise DataError(str(error)) from error

    def _ids(self, pieces: tuple[Piece, ...]) -> list[int]:
        [parts] = self.pieces.encode([pieces])
        return [token for part in parts for token in part]
