"""Responses of the policy to the same few prompts at each evaluation: `fixed_samples.jsonl`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from rlhf_cli.console import logger
from rlhf_cli.context import forked_rng
from rlhf_cli.data.examples import Examples
from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.errors import first_line
from rlhf_cli.models.context_length import context_length
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.sharding import gathered
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.engine import generate
from rlhf_cli.rollout.response import Response, response_text
from rlhf_cli.rollout.stopping import end_token_ids
from rlhf_cli.runs import lock
from rlhf_cli.runs.run_files import (
    FIXED_SAMPLES,
    append_json_lines,
    format_json_lines,
    read_json_lines,
    write_text_atomic,
)

GREEDY = SamplingConfig(temperature=0.0, max_new_tokens=64)

MAX_PROMPT_TOKENS = 512
"""Longer prompts are passed over: their cache would cost memory that training needs."""

TEXT_TOKENS = 24
"""Tokens of a row of text that are the prompt; the policy continues them."""

SEARCHED = 1000
"""Examples among which prompts are searched."""

Score = Callable[[Sequence[Response]], Tensor]
"""Scores of this rank's responses, possibly none; every rank calls it."""


@dataclass(frozen=True)
class FixedPrompt:
    """A prompt that is answered at each evaluation.

    Attributes:
        index: in its data set.
        text: as it is shown.
        token_ids: after which the response begins.
    """

    index: int
    text: str
    token_ids: list[int]


def prompts_of_examples(
    examples: Examples, tokenizer: Any, policy: Policy, count: int
) -> list[FixedPrompt]:
    """The first different prompts of tokenized examples; of text, the beginnings of rows.

    Args:
        examples: of a stage; the first row of each is read.
        tokenizer: decodes the prompts.
        policy: whose positions must have room for a response.
        count: number of prompts.
    """
    return _choose(_iter_prompts(examples, tokenizer), policy, count)


def _iter_prompts(examples: Examples, tokenizer: Any) -> Iterator[FixedPrompt]:
    for index in range(min(SEARCHED, len(examples))):
        row = examples.example_starts[index]
        start, end = examples.row_starts[row], examples.row_starts[row + 1]
        targets = np.flatnonzero(examples.loss_mask[start:end])
        if not len(targets):
            continue
        length = int(targets[0])
        if length <= 1:  # every token is a target
            length = TEXT_TOKENS
            if end - start <= length:
                continue
        tokens = examples.tokens[start : start + length].tolist()
        yield FixedPrompt(index, tokenizer.decode(tokens, skip_special_tokens=True), tokens)


def _choose(prompts: Iterable[FixedPrompt], policy: Policy, count: int) -> list[FixedPrompt]:
    """The first prompts that differ and leave room for a response."""
    room = (context_length(policy.model) or 2**31) - GREEDY.max_new_tokens
    chosen: dict[tuple[int, ...], FixedPrompt] = {}
    for prompt in prompts:
        if len(chosen) == count:
            break
        if 0 < len(prompt.token_ids) <= min(room, MAX_PROMPT_TOKENS):
            chosen.setdefault(tuple(prompt.token_ids), prompt)
    return list(chosen.values())


def prompts_of_set(
    texts: Callable[[int], str], token_ids: Sequence[list[int]], policy: Policy, count: int
) -> list[FixedPrompt]:
    """The first different prompts of a set of prompts.

    Args:
        texts: the prompt of an index, as it is shown.
        token_ids: of each prompt.
        policy: whose positions must have room for a response.
        count: number of prompts.
    """
    found = (FixedPrompt(k, texts(k), list(ids)) for k, ids in enumerate(token_ids[:SEARCHED]))
    return _choose(found, policy, count)


class FixedSamples:
    """Lets the policy answer fixed prompts, without any influence on training.

    Responses are greedy, so that they show the policy's change alone. Random generators, dropout
    and the modes of modules are as before afterwards. Only rank 0 generates and writes.

    Args:
        out: the run folder.
        policy: answers with its current weights.
        tokenizer: the policy's.
        prompts: to answer.
        ranks: of the run.
        score: scores responses, or None.
    """

    def __init__(
        self,
        out: Path,
        policy: Policy,
        tokenizer: Any,
        prompts: Sequence[FixedPrompt],
        ranks: Ranks,
        score: Score | None = None,
    ) -> None:
        self.path, self.policy, self.tokenizer = out / FIXED_SAMPLES, policy, tokenizer
        self.prompts, self.ranks, self.score = prompts, ranks, score
        self.failed = False

    def write(self, step: int) -> None:
        """Generate and append the responses after a step; collective.

        A policy that cannot answer is reported once, and the run goes on without.

        Raises:
            CheckpointError: the file cannot be written.
        """
        if not self.prompts:
            return
        with _same_random_numbers():
            responses = self._generate()
            scores = self.score(responses).tolist() if self.score else [None] * len(responses)
        if responses:
            lock.require_owned(self.path.parent)
            pairs = zip(responses, scores, strict=True)
            append_json_lines(self.path, [self._row(step, *pair) for pair in pairs])

    def _generate(self) -> list[Response]:
        with gathered(self.policy):
            return self._responses() if self.ranks.is_main and not self.failed else []

    def _responses(self) -> list[Response]:
        try:
            token_ids = [one.token_ids for one in self.prompts]
            responses = generate(self.policy, self.tokenizer, token_ids, GREEDY)
        except Exception as error:  # of whatever kind: the samples are not worth a run
            self.failed = True
            logger.info(f"log.sample_prompts: no responses ({first_line(error)})")
            return []
        return [
            replace(
                one,
                prompt_index=self.prompts[one.prompt_index].index,
                text=response_text(self.tokenizer, one.token_ids, self._end_ids()),
            )
            for one in responses
        ]

    def _end_ids(self) -> list[int]:
        return end_token_ids(self.policy.model, self.tokenizer)

    def _row(self, step: int, response: Response, score: float | None) -> dict[str, Any]:
        row = {
            "step": step,
            "prompt": self.prompts[response.index].text,
            "response": response.text,
            "tokens": len(response.token_ids),
        }
        return row if score is None else {**row, "score": score}

    def cut(self, step: int) -> None:
        """Remove the responses after a step, for a run that starts again or continues there."""
        if self.ranks.is_main and self.path.exists():
            kept = [row for row in read_json_lines(self.path) if row["step"] <= step]
            write_text_atomic(self.path, format_json_lines(kept))


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Restore the random generators of torch, numpy and Python: a reward may use them."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with forked_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
