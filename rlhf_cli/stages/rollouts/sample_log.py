"""Responses of rollouts with their scores: `samples.jsonl`, and lines of the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rlhf_cli.console import logger, shorten
from rlhf_cli.rollout.response import Response
from rlhf_cli.runs import lock
from rlhf_cli.runs.run_files import (
    SAMPLES,
    append_json_lines,
    format_json_lines,
    read_json_lines,
    write_text_atomic,
)
from rlhf_cli.stages.rollouts.worker import RolloutWorker

LOGGED_RESPONSES = 4
"""Responses of a rollout that are logged."""

LOG_WIDTH = 48
"""Characters of a prompt and of a response in the log."""


@dataclass(frozen=True)
class LoggedSample:
    """A line of `samples.jsonl`, without its step.

    Attributes:
        prompt: text of the prompt, of a chat the last message.
        response: text of the response.
        score: of the response; None where there is no reward.
        kl: nats, of the whole response from the reference; None where there is none.
        tokens: length of the response.
        weights_version: number of steps that the weights which generated it had been trained for.
        divergence: nats, from a teacher, summed over the response; None where there is none.
    """

    prompt: str
    response: str
    score: float | None = None
    kl: float | None = None
    tokens: int = 0
    weights_version: int = 0
    divergence: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """What is known, as JSON values."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def numbers(self) -> str:
        """Score and KL, or the divergence, below `HEADS`."""
        if self.score is not None and self.kl is not None:
            return f"{self.score:20.2f}  {self.kl:6.2f}"
        return f"{self.divergence or 0.0:20.2f}"


HEADS = {True: "score      KL", False: "divergence"}
"""Heads of the numbers of a sample, by whether it has a score."""


def logged_samples(
    worker: RolloutWorker, responses: Sequence[Response], scores: Tensor, kl: Tensor
) -> list[LoggedSample]:
    """Responses with their scores and KLs, for `SampleLog`.

    Args:
        worker: generated the responses.
        responses: B of them.
        scores: [B].
        kl: [B], nats, of each whole response from the reference.
    """
    return [
        LoggedSample(
            worker.prompt_text(response.prompt_index),
            response.text,
            float(scores[k]),
            float(kl[k]),
            len(response.token_ids),
            response.weights_version,
        )
        for k, response in enumerate(responses)
    ]


def is_logged(step: int, every: int, total_steps: int) -> bool:
    """Whether samples of a step are logged: every few steps, of the first and of the last.

    Args:
        step: from 1.
        every: `sample_steps`; 0 never logs.
        total_steps: of the run.
    """
    return bool(every) and (step % every == 0 or step in (1, total_steps))


class SampleLog:
    """Writes samples to `samples.jsonl` and prints them; only rank 0 does.

    Args:
        folder: of the run.
        written: whether this rank writes.
        full: print whole texts, on lines of their own.
    """

    def __init__(self, folder: Path, *, written: bool, full: bool = False) -> None:
        self.path, self.written, self.full = folder / SAMPLES, written, full

    def add(self, step: int, samples: Sequence[LoggedSample]) -> None:
        """Append the samples of a step, and print them.

        Raises:
            CheckpointError: the disk is full, the folder read-only or owned by another process.
        """
        if not self.written:
            return
        lock.require_owned(self.path.parent)
        append_json_lines(self.path, [{"step": step, **one.to_dict()} for one in samples])
        head = HEADS[any(one.score is not None for one in samples)]
        logger.info(f"samples of step {step}:   {head}  prompt -> response")
        for sample in samples:
            prompt, response = _last_chars(sample.prompt), _first_chars(sample.response)
            if self.full:
                prompt, response = _block(sample.prompt), _block(sample.response)
            logger.info(f"  {sample.numbers}  {prompt} -> {response}")

    def truncate(self, step: int) -> None:
        """Remove samples after a step, for a run that resumes at its checkpoint."""
        if self.written and self.path.exists():
            kept = [row for row in read_json_lines(self.path) if row["step"] <= step]
            write_text_atomic(self.path, format_json_lines(kept))


def _first_chars(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= LOG_WIDTH else f"{plain[: LOG_WIDTH - 1]}…"


def _last_chars(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= LOG_WIDTH else f"…{plain[1 - LOG_WIDTH :]}"


def _block(text: str) -> str:
    """The text on lines of its own, without terminal control characters."""
    return "\n" + shorten(text, len(text))
