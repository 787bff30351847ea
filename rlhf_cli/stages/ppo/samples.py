"""Some responses of a run with score and KL, in the log and in `samples.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_cli.console import logger
from rlhf_cli.data.preview import shorten
from rlhf_cli.errors import CheckpointError
from rlhf_cli.runs import lock
from rlhf_cli.runs.run_files import SAMPLES, read_json_lines, write_text_atomic

ROWS = 4
"""Responses of a rollout that are shown."""

WIDTH = 48
"""Characters of a prompt and of a response in the log."""


@dataclass(frozen=True)
class Sample:
    """A response, as it is shown.

    Attributes:
        prompt: the newest of its text.
        response: without special tokens.
        score: what it was given.
        kl: nats, of the whole response from the reference.
        tokens: of the response.
    """

    prompt: str
    response: str
    score: float
    kl: float
    tokens: int


class SampleFile:
    """`samples.jsonl`: an object for each shown response, with its step; only rank 0 writes it.

    Args:
        folder: of the run.
        written: whether this rank writes it.
        full: show whole texts in the log, on lines of their own.
    """

    def __init__(self, folder: Path, *, written: bool, full: bool = False) -> None:
        self.path, self.written, self.full = folder / SAMPLES, written, full

    def add(self, step: int, samples: Sequence[Sample]) -> None:
        """Append the samples of a step, and show them.

        Raises:
            CheckpointError: the disk is full, the folder read-only or taken over.
        """
        if not self.written:
            return
        lock.require_owned(self.path.parent)
        rows = [{"step": step, **asdict(one)} for one in samples]
        try:
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(_lines(rows))
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be written ({error.strerror})") from error
        logger.info(f"samples of step {step}:   score      KL  prompt -> response")
        for one in samples:
            prompt, response = _end(one.prompt), _start(one.response)
            if self.full:
                prompt, response = _whole(one.prompt), _whole(one.response)
            logger.info(f"  {one.score:20.2f}  {one.kl:6.2f}  {prompt} -> {response}")

    def cut(self, step: int) -> None:
        """Keep the samples up to a step: those that stood when a checkpoint was written."""
        if self.written and self.path.exists():
            kept = [row for row in read_json_lines(self.path) if row["step"] <= step]
            write_text_atomic(self.path, _lines(kept))


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _start(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= WIDTH else f"{plain[: WIDTH - 1]}…"


def _end(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= WIDTH else f"…{plain[1 - WIDTH :]}"


def _whole(text: str) -> str:
    """On lines of its own, without what controls a terminal."""
    return "\n" + shorten(text, len(text))
