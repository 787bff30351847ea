"""The rows that are written of answers: each one, or what their scores make of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_cli.commands.answers import Answers
from rlhf_cli.data.prompts import PromptSet
from rlhf_cli.data.records.fields import Prompt, prompt_to_json
from rlhf_cli.rewards.rewards import Rewards
from rlhf_cli.rewards.samples import Samples

Row = dict[str, Any]


@dataclass(frozen=True)
class Scored:
    """A response, its score, and whether it ended by itself."""

    text: str
    score: float
    ended: bool


@dataclass
class Tally:
    """How many responses there were, how many ended by themselves, and the sum of their scores."""

    count: int = 0
    ended: int = 0
    score: float = 0.0

    def add(self, one: Scored) -> None:
        """Count one more."""
        self.count += 1
        self.ended += one.ended
        self.score += one.score

    @property
    def mean(self) -> float:
        """Of the scores; of one response at least."""
        return self.score / self.count


class PlainRows:
    """A row `{prompt, response}` for each response."""

    def __init__(self) -> None:
        self.responses = self.ended = 0

    def make(self, prompts: PromptSet, answers: Answers) -> list[Row]:
        """The rows of all responses to some prompts, as many to each."""
        self.responses += len(answers.texts)
        self.ended += sum(answers.ended)
        each = _of_each(prompts, answers).prompts
        return [
            {"prompt": prompt_to_json(prompt), "response": text}
            for prompt, text in zip(each, answers.texts, strict=True)
        ]

    def told(self) -> str:
        """What came of it, for the last line."""
        return f"{self.responses} responses, {self.ended} ended by themselves"


class ScoredRows(ABC):
    """A row for each prompt, of its scored responses. No blank one is in it: nobody trains on it.

    Args:
        rewards: gives the scores.
        as_given: the form in which the model was given a prompt, which the row then has too: what
            is trained on it sees the tokens that were answered.
    """

    def __init__(self, rewards: Rewards, as_given: Callable[[Prompt], Prompt]) -> None:
        self.rewards, self.as_given = rewards, as_given
        self.all, self.best = Tally(), Tally()
        self.prompts = self.blank = self.without_row = 0

    def make(self, prompts: PromptSet, answers: Answers) -> list[Row]:
        """The rows of some prompts, as many responses to each.

        Raises:
            DataError: a source does not give every response a finite number.
            ConfigError: a function does not take what it is called with.
        """
        scored = self._score(prompts, answers)
        count = len(scored) // len(prompts)
        rows = []
        for place, prompt in enumerate(prompts.prompts):
            written = self._not_blank(scored[place * count : (place + 1) * count])
            if written:
                self.best.add(best_of(written))
                rows.append(
                    {"prompt": prompt_to_json(self.as_given(prompt)), **self.columns(written)}
                )
        self.prompts += len(prompts)
        self.without_row += len(prompts) - len(rows)
        return rows

    def _score(self, prompts: PromptSet, answers: Answers) -> list[Scored]:
        # nothing is learned from these scores, so no running statistic sees them
        scores = self.rewards.score(samples_of(prompts, answers), observe=False).total.tolist()
        scored = [Scored(*each) for each in zip(answers.texts, scores, answers.ended, strict=True)]
        for one in scored:
            self.all.add(one)
        return scored

    def _not_blank(self, scored: Sequence[Scored]) -> list[Scored]:
        written = [one for one in scored if one.text.strip()]
        self.blank += len(scored) - len(written)
        return written

    @abstractmethod
    def columns(self, scored: Sequence[Scored]) -> Row:
        """What a row has beside its prompt, of one response at least."""

    def told(self) -> str:
        """What came of it, for the last line."""
        parts = [
            f"{self.all.count} responses to {self.prompts} prompts, {self.all.ended} ended by "
            "themselves",
            f"mean score {self.all.mean:.4g}",
        ]
        if self.best.count:
            parts[-1] += (
                f", of the best {self.best.mean:.4g}, {self.best.ended} of which ended by "
                "themselves"
            )
        if self.blank:
            parts.append(f"{self.blank} blank responses left out")
        if self.without_row:
            parts.append(f"{self.without_row} prompts without a row: all responses were blank")
        return "; ".join([*parts, *self.remarks()])

    def remarks(self) -> list[str]:
        """What else is to be told."""
        return []


class BestRows(ScoredRows):
    """A row `{prompt, completion, best_score}` for each prompt.

    A column called `score` would make it a row of the kind `scored`, which `rlhf sft` refuses.
    """

    def columns(self, scored: Sequence[Scored]) -> Row:
        """The response with the highest score; of equal ones the first."""
        best = best_of(scored)
        return {"completion": best.text, "best_score": best.score}


class RankedRows(ScoredRows):
    """A row `{prompt, responses, scores}` for each prompt, every response once."""

    def __init__(self, rewards: Rewards, as_given: Callable[[Prompt], Prompt]) -> None:
        super().__init__(rewards, as_given)
        self.repeated = self.without_order = 0

    def columns(self, scored: Sequence[Scored]) -> Row:
        """The responses as they were drawn; of equal ones the first."""
        first: dict[str, float] = {}
        for one in scored:
            first.setdefault(one.text, one.score)
        self.repeated += len(scored) - len(first)
        self.without_order += len({*first.values()}) == 1
        return {"responses": [*first], "scores": [*first.values()]}

    def remarks(self) -> list[str]:
        """Responses left out, and rows from which no order can be learned."""
        found = []
        if self.repeated:
            found.append(f"{self.repeated} repeated responses left out")
        if self.without_order:
            found.append(
                f"{self.without_order} prompts with one response or equal scores, whose rows "
                "rlhf reward refuses"
            )
        return found


def best_of(scored: Sequence[Scored]) -> Scored:
    """The response with the highest score; of equal ones the first."""
    return max(scored, key=lambda one: one.score)


def samples_of(prompts: PromptSet, answers: Answers) -> Samples:
    """Every response to be scored, with its prompt and the other columns of the prompt's row."""
    each = _of_each(prompts, answers)
    return Samples(each.prompts, answers.texts, answers.prompt_tokens, answers.tokens, each.columns)


def _of_each(prompts: PromptSet, answers: Answers) -> PromptSet:
    """The prompt of each response."""
    count = len(answers.texts) // len(prompts)
    return prompts.select([place for place in range(len(prompts)) for _ in range(count)])
