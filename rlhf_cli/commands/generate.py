"""`rlhf generate`: write responses to prompts, or training rows made of scored responses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_cli.commands.config import GenerateConfig
from rlhf_cli.commands.generator import Responses, TextGenerator
from rlhf_cli.commands.served.generator import open_generator
from rlhf_cli.config.schema import no_rows
from rlhf_cli.console import logger
from rlhf_cli.context import RunContext, create_context
from rlhf_cli.data.prompts import PromptEncoder, PromptSet, load_prompts
from rlhf_cli.data.records.fields import Message, Messages, Prompt, prompt_to_json
from rlhf_cli.errors import ConfigError, DataError
from rlhf_cli.progress import ProgressCount
from rlhf_cli.rewards.rewards import CombinedReward, load_combined_reward
from rlhf_cli.rewards.samples import Samples
from rlhf_cli.rollout.cuda_graphs import require_cuda
from rlhf_cli.runs.outputs import open_output
from rlhf_cli.runs.run_files import format_json_lines

Row = dict[str, Any]


def run(cfg: GenerateConfig) -> None:
    """Respond to one prompt, streaming the text, or to many in batches."""
    ctx = create_context(cfg.precision, cfg.sampling.seed, Path())
    require_cuda(cfg.sampling, ctx.device)
    prompts = _prompts(cfg)
    skip = cfg.reward.skip_special_tokens
    with open_generator(cfg, cfg.model, ctx, skip_special_tokens=skip) as generator:
        if cfg.system:
            prompts = add_system_message(cfg.system, prompts, generator.encoder)
        prompts, tokens = generator.encode(prompts)
        if len(prompts) == 1 and cfg.samples_per_prompt == 1 and not cfg.output:
            generator.stream(tokens[0], cfg.sampling)
        else:
            _generate_all(cfg, generator, _row_builder(cfg, generator, ctx), prompts, tokens)


def _prompts(cfg: GenerateConfig) -> PromptSet:
    if not no_rows(cfg.prompts):
        return load_prompts(cfg.prompts)
    given = [cfg.prompt] if isinstance(cfg.prompt, str) else cfg.prompt
    return PromptSet([prompt for prompt in given if prompt])


def add_system_message(system: str, prompts: PromptSet, encoder: PromptEncoder) -> PromptSet:
    """Convert prompts to messages and put a system message first.

    Args:
        system: its text.
        prompts: text or messages.
        encoder: of the model; decides whether a text becomes a user message.

    Raises:
        ConfigError: the model takes the text prompts as text.
        DataError: a prompt already has a system message.
    """
    given = [encoder.to_messages(prompt) for prompt in prompts.prompts]
    found: list[Prompt] = []
    for index, prompt in enumerate(given):
        if isinstance(prompt, str):
            raise ConfigError(
                "system: given, and the model takes text prompts as text, without a chat "
                "template. Try template=always"
            )
        if prompt[0].role == "system":
            raise DataError(
                f"{prompts.location(index)}: has a system message of its own beside "
                f"system={system}. Leave system out"
            )
        found.append((Message("system", system, tools=prompt[0].tools), *_without_tools(prompt)))
    return replace(prompts, prompts=found)


def _without_tools(prompt: Messages) -> Messages:
    """Remove the tools, which belong to the first message: now the system message."""
    return (replace(prompt[0], tools=()), *prompt[1:])


def _row_builder(
    cfg: GenerateConfig, generator: TextGenerator, ctx: RunContext
) -> PlainRows | ScoredRows:
    """Choose the kind of rows; the reward is loaded now, so that it fails before generation."""
    if not cfg.reward.is_given:
        return PlainRows()
    rewards = load_combined_reward(cfg.reward, generator.tokenizer, ctx)
    kind = BestRows if cfg.keep == "best" else RankedRows
    return kind(rewards, generator.encoder.to_messages)


def _generate_all(
    cfg: GenerateConfig,
    generator: TextGenerator,
    rows: PlainRows | ScoredRows,
    prompts: PromptSet,
    tokens: list[list[int]],
) -> None:
    """Generate in batches, in the order given; each batch is written as soon as it is complete."""
    progress = ProgressCount("responses", len(tokens) * cfg.samples_per_prompt)
    lines = _row_lines(cfg, generator, rows, prompts, tokens, progress)
    if not cfg.output:
        with progress:
            for text in lines:
                progress.end_line()  # rows start at the beginning of a line
                print(text, end="", flush=True)
        logger.info(rows.summary())
        return
    with open_output(Path(cfg.output)) as write, progress:
        for text in lines:
            write(text)
    logger.info(f"{rows.summary()} -> {cfg.output}")


def _row_lines(
    cfg: GenerateConfig,
    generator: TextGenerator,
    rows: PlainRows | ScoredRows,
    prompts: PromptSet,
    tokens: list[list[int]],
    progress: ProgressCount,
) -> Iterator[str]:
    """JSON lines of the rows of each batch."""
    done, samples = 0, cfg.samples_per_prompt
    for responses in generator.generate(tokens, cfg.sampling, cfg.batch_size, samples):
        progress.add(len(responses.texts))
        batch = range(done, done + len(responses.texts) // samples)
        built, done = rows.build(prompts.select(batch), responses), batch.stop
        yield format_json_lines(built)


@dataclass(frozen=True)
class ScoredResponse:
    """A response, its score, and whether it ended by an end token."""

    text: str
    score: float
    ended: bool


@dataclass
class ScoreTotals:
    """Totals over responses: their count, how many ended by an end token, sum of scores."""

    count: int = 0
    ended: int = 0
    score: float = 0.0

    def add(self, one: ScoredResponse) -> None:
        """Add one response."""
        self.count += 1
        self.ended += one.ended
        self.score += one.score

    @property
    def mean(self) -> float:
        """Mean score; needs at least one response."""
        return self.score / self.count


class PlainRows:
    """Builds one row `{prompt, response}` per response."""

    def __init__(self) -> None:
        self.responses = self.ended = 0

    def build(self, prompts: PromptSet, responses: Responses) -> list[Row]:
        """Build the rows of some prompts, which all have the same number of responses."""
        self.responses += len(responses.texts)
        self.ended += sum(responses.ended)
        each = _repeat_prompts(prompts, responses).prompts
        return [
            {"prompt": prompt_to_json(prompt), "response": text}
            for prompt, text in zip(each, responses.texts, strict=True)
        ]

    def summary(self) -> str:
        """Counts for the last line of the command."""
        return f"{self.responses} responses, {self.ended} ended by themselves"


class ScoredRows(ABC):
    """Builds one row per prompt from its scored responses, without blank ones.

    Args:
        rewards: scores the responses.
        as_given: converts a prompt to the form in which the model got it. Rows hold that form, so
            that training on them sees the same tokens.
    """

    def __init__(self, rewards: CombinedReward, as_given: Callable[[Prompt], Prompt]) -> None:
        self.rewards, self.as_given = rewards, as_given
        self.all, self.best = ScoreTotals(), ScoreTotals()
        self.prompts = self.blank = self.without_row = 0

    def build(self, prompts: PromptSet, responses: Responses) -> list[Row]:
        """Build the rows of some prompts, which all have the same number of responses.

        Raises:
            DataError: a reward source does not give every response a finite number.
            ConfigError: a reward function does not accept its arguments.
        """
        scored = self._score(prompts, responses)
        count = len(scored) // len(prompts)
        rows = []
        for index, prompt in enumerate(prompts.prompts):
            written = self._without_blank(scored[index * count : (index + 1) * count])
            if written:
                self.best.add(best_of(written))
                rows.append(
                    {"prompt": prompt_to_json(self.as_given(prompt)), **self.columns(written)}
                )
        self.prompts += len(prompts)
        self.without_row += len(prompts) - len(rows)
        return rows

    def _score(self, prompts: PromptSet, responses: Responses) -> list[ScoredResponse]:
        # no training step uses these scores, so running statistics ignore them
        scores = self.rewards.score(samples_of(prompts, responses), observe=False).total.tolist()
        columns = zip(responses.texts, scores, responses.ended, strict=True)
        scored = [ScoredResponse(*each) for each in columns]
        for one in scored:
            self.all.add(one)
        return scored

    def _without_blank(self, scored: Sequence[ScoredResponse]) -> list[ScoredResponse]:
        written = [one for one in scored if one.text.strip()]
        self.blank += len(scored) - len(written)
        return written

    @abstractmethod
    def columns(self, scored: Sequence[ScoredResponse]) -> Row:
        """Columns of a row beside its prompt, from at least one response."""

    def summary(self) -> str:
        """Counts and mean scores for the last line of the command."""
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
        """Further parts of the summary."""
        return []


class BestRows(ScoredRows):
    """Builds one row `{prompt, completion, best_score}` per prompt.

    A column called `score` would make the row a scored record, which `rlhf sft` refuses.
    """

    def columns(self, scored: Sequence[ScoredResponse]) -> Row:
        """The response with the highest score; the first of equal ones."""
        best = best_of(scored)
        return {"completion": best.text, "best_score": best.score}


class RankedRows(ScoredRows):
    """Builds one row `{prompt, responses, scores}` per prompt, without repeated responses."""

    def __init__(self, rewards: CombinedReward, as_given: Callable[[Prompt], Prompt]) -> None:
        super().__init__(rewards, as_given)
        self.repeated = self.without_order = 0

    def columns(self, scored: Sequence[ScoredResponse]) -> Row:
        """The responses in the order of sampling; the first of equal ones."""
        first: dict[str, float] = {}
        for one in scored:
            first.setdefault(one.text, one.score)
        self.repeated += len(scored) - len(first)
        self.without_order += len({*first.values()}) == 1
        return {"responses": [*first], "scores": [*first.values()]}

    def remarks(self) -> list[str]:
        """Counts of repeated responses, and of rows without a preference to learn."""
        found = []
        if self.repeated:
            found.append(f"{self.repeated} repeated responses left out")
        if self.without_order:
            found.append(
                f"{self.without_order} prompts with one response or equal scores, whose rows "
                "rlhf reward refuses"
            )
        return found


def best_of(scored: Sequence[ScoredResponse]) -> ScoredResponse:
    """The response with the highest score; the first of equal ones."""
    return max(scored, key=lambda one: one.score)


def samples_of(prompts: PromptSet, responses: Responses) -> Samples:
    """Combine every response with its prompt and the other columns of the prompt's row."""
    each = _repeat_prompts(prompts, responses)
    return Samples(
        each.prompts, responses.texts, responses.prompt_tokens, responses.tokens, each.columns
    )


def _repeat_prompts(prompts: PromptSet, responses: Responses) -> PromptSet:
    """The prompt of each response."""
    count = len(responses.texts) // len(prompts)
    return prompts.select([index for index in range(len(prompts)) for _ in range(count)])
