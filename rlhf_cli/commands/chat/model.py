"""A model of the chat: it answers a prompt with streamed text, and can be stopped."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from rlhf_cli.commands.chat.config import ChatConfig
from rlhf_cli.commands.evaluate.targets import short_names
from rlhf_cli.commands.generator import TextGenerator
from rlhf_cli.context import RunContext
from rlhf_cli.data.records.fields import Prompt
from rlhf_cli.data.report import RefusedRow
from rlhf_cli.errors import ConfigError, DataError
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.engine import generate
from rlhf_cli.rollout.probe import supports_continuous_batching
from rlhf_cli.rollout.response import ResponseStreamer, response_text
from rlhf_cli.rollout.stopping import add_end_token, end_token_ids
from rlhf_cli.runs import hub
from rlhf_cli.runs.artifact import find_model_folder

Sink = Callable[[str], None]
"""Takes the next piece of an answer's text."""

IsStopped = Callable[[], bool]
Stopper = Callable[[], AbstractContextManager[IsStopped]]

_EDGE = 1 << 20
"""Bytes at each end of a weight file that its hash reads: a whole model would take minutes."""


@dataclass(frozen=True, eq=False)
class Answer:
    """An answer of one model; two answers are never equal, also with the same text.

    Attributes:
        prompt: what it answers: messages with the whole history, or text.
        text: the answer, without end tokens.
        model: path, commit and hash of the model.
        sampling: keys of the sampling; `sample` is the number of the sample under its seed.
        finished: whether it ended by itself, not at the length limit or by Ctrl-C.
        stopped: whether Ctrl-C stopped it.
    """

    prompt: Prompt
    text: str
    model: dict[str, str] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    finished: bool = True
    stopped: bool = False


class _Stopped(Exception):
    """The user stopped the answer."""


class _AnswerStreamer(ResponseStreamer):
    """Passes the text of an answer on while it is generated, and keeps its tokens.

    Args:
        tokenizer: decodes the tokens.
        end_ids: tokens that end a response.
        sink: takes the text.
        is_stopped: asked before every token.
    """

    def __init__(
        self, tokenizer: Any, end_ids: Sequence[int], sink: Sink, is_stopped: IsStopped
    ) -> None:
        super().__init__(tokenizer, end_ids)
        self.sink, self.is_stopped = sink, is_stopped
        self.tokens: list[int] = []

    def put(self, value: Any) -> None:
        """Receive the prompt's tokens, then the answer's tokens one at a time."""
        if self.is_stopped():
            raise _Stopped
        if not self.next_tokens_are_prompt:
            self.tokens += value.flatten().tolist()
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Pass the text on."""
        if text:
            self.sink(text)


class ChatModel:
    """A loaded model with its name, tokenizer and prompt format.

    Args:
        generator: the loaded model.
        name: how the chat calls it.
        identity: path, commit and hash, for rows of ratings.
    """

    def __init__(self, generator: TextGenerator, name: str, identity: dict[str, str]) -> None:
        self.generator, self.name, self.identity = generator, name, identity

    @property
    def reads_messages(self) -> bool:
        """Whether the chat template renders messages; else the model continues text."""
        return self.generator.encoder.as_message

    @property
    def megabytes(self) -> float:
        """Memory of the weights, MB."""
        tensors = [*self.generator.model.parameters(), *self.generator.model.buffers()]
        return float(sum(one.numel() * one.element_size() for one in tensors)) / 1e6

    def answer(
        self,
        prompt: Prompt,
        sampling: SamplingConfig,
        sample: int,
        sink: Sink,
        is_stopped: IsStopped,
    ) -> Answer:
        """Answer a prompt.

        Args:
            prompt: messages with the whole history, or text.
            sampling: how tokens are sampled.
            sample: number of the sample: the same number gives the same answer again.
            sink: takes the text while it is generated.
            is_stopped: whether to stop; the answer so far is returned.

        Raises:
            DataError: the chat template refuses the messages.
            ConfigError: prompt and answer do not fit the model's positions.
        """
        own = self.generator
        try:
            ids = own.encoder.encode(prompt)
        except RefusedRow as error:
            raise DataError(f"{self.name}: the chat template refuses this: {error}") from error
        add_end_token(own.model, own.tokenizer, own.encoder.turn_end)
        ends = end_token_ids(own.model, own.tokenizer)
        streamer = _AnswerStreamer(own.tokenizer, ends, sink, is_stopped)
        finished = stopped = False
        try:
            [response] = generate(
                own.model,
                own.tokenizer,
                [ids],
                sampling,
                prompt_numbers=[sample],
                streamer=streamer,
            )
            tokens, finished = response.token_ids, response.finished
        except _Stopped:
            streamer.end()
            tokens, stopped = streamer.tokens, True
        text = response_text(own.tokenizer, tokens, ends)
        keys = {**asdict(sampling), "sample": sample}
        return Answer(prompt, text, self.identity, keys, finished, stopped)


def load_chat_models(cfg: ChatConfig, ctx: RunContext) -> list[ChatModel]:
    """Load all models of a chat.

    Raises:
        ConfigError: some models read messages and others continue text.
    """
    found = []
    for path, name in zip(cfg.models, short_names(cfg.models), strict=True):
        model = replace(cfg.model, path=path)
        generator = TextGenerator(model, cfg.quant, cfg.template, ctx)
        supports_continuous_batching(generator.model)  # probed and reported now, not in an answer
        found.append(ChatModel(generator, name, _identity(model)))
    text = [model for model in found if not model.reads_messages]
    if text and len(text) < len(found):
        names = ", ".join(model.name for model in text)
        can_chat = all(model.generator.tokenizer.chat_template for model in text)
        raise ConfigError(
            f"template: got {cfg.template}, with which {names} would continue text and the others "
            "read messages, so that their answers cannot be compared. "
            f"Try template={'always' if can_chat else 'never'}"
        )
    return found


def _identity(model: ModelConfig) -> dict[str, str]:
    """Path, commit and hash of a model, as far as it has them."""
    folder = find_model_folder(model.path, model.revision)
    facts = {
        "path": model.path,
        "commit": hub.resolved_commit(model.path, model.revision),
        "sha256": weights_hash(folder) if folder else "",
    }
    return {name: value for name, value in facts.items() if value}


def weights_hash(folder: Path) -> str:
    """Hash of a model's weight files: of name, size, and the first and last MiB of each."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_EDGE))
            stream.seek(max(0, size - _EDGE))
            digest.update(stream.read())
    return digest.hexdigest()[:16]


@contextmanager
def stopping_on_interrupt() -> Iterator[IsStopped]:
    """Let the first Ctrl-C inside the block only be noted; a second one interrupts as ever."""
    pressed = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def never_stopped() -> Iterator[IsStopped]:
    """Leave Ctrl-C as it is: it ends the command."""
    yield lambda: False
