"""A judge's scores of models' answers, and how often they beat those of a baseline."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlhf_cli.commands.answers import Answers, Author
from rlhf_cli.commands.evaluate.config import EvaluateConfig
from rlhf_cli.commands.evaluate.subject import model_of, names
from rlhf_cli.context import RunContext, say
from rlhf_cli.data.prompts import PromptSet, load_prompts
from rlhf_cli.data.records.fields import prompt_to_json
from rlhf_cli.errors import DataError
from rlhf_cli.evaluation.bootstrap import difference
from rlhf_cli.evaluation.estimate import Estimate
from rlhf_cli.evaluation.measured import Measured, share_of
from rlhf_cli.evaluation.table import Result
from rlhf_cli.evaluation.winrate import count_wins
from rlhf_cli.progress import ProgressCount
from rlhf_cli.rewards.samples import Samples
from rlhf_cli.rewards.sources.function import FunctionScorer
from rlhf_cli.rewards.sources.scorer import numbers
from rlhf_cli.rollout.graphs import require_cuda


@dataclass(frozen=True)
class Judged:
    """The answers of one model to all prompts, and their scores."""

    name: str
    answers: Answers
    scores: list[float]


def judge(cfg: EvaluateConfig, ctx: RunContext) -> tuple[list[Result], list[dict[str, Any]]]:
    """Let every model answer all prompts, and score the answers.

    Returns:
        The results, and one object a prompt with every model's answer and score.

    Raises:
        ConfigError: the judge cannot be imported, or the device has no CUDA graphs.
        DataError: there is no prompt, or the judge fails.
    """
    require_cuda(cfg.sampling, ctx.device)
    scorer = FunctionScorer(cfg.judge, "judge")
    read = load_prompts(cfg.prompts)
    prompts = read.prompts
    asked = [prompt_to_json(prompt) for prompt in prompts]
    paths = [*cfg.models, *([cfg.baseline] if cfg.baseline else [])]
    found = []
    for path, name in zip(paths, names(paths), strict=True):
        answers = _answer(cfg, path, read, ctx)
        samples = Samples(
            prompts, answers.texts, answers.prompt_tokens, answers.tokens, read.columns
        )
        found.append(Judged(name, answers, numbers(scorer(samples), samples, scorer.who)))
    baseline = found[-1] if cfg.baseline else None
    results = [result for one in found for result in _results(one, baseline, cfg.seed)]
    return results, list(_transcript(asked, found))


def _answer(cfg: EvaluateConfig, path: str, prompts: PromptSet, ctx: RunContext) -> Answers:
    author = Author(model_of(cfg, path), cfg.quant, cfg.template, ctx)
    taken, tokens = author.encode(prompts)
    if len(taken) < len(prompts):
        raise DataError(
            f"{path}: its chat template refuses {len(prompts) - len(taken)} of {len(prompts)} "
            "prompts (see above), and models are compared on the same ones. Leave them out"
        )
    torch.manual_seed(cfg.sampling.seed)  # the same draws for every model
    answers = Answers([], [], [], [])
    with ProgressCount("answers", len(tokens)) as progress:
        for batch in author.answer(tokens, cfg.sampling, cfg.batch_size):
            progress.add(len(batch.texts))
            answers.extend(batch)
    say(f"{path}: {len(answers.texts)} answers, {sum(answers.ended)} ended by themselves")
    return answers


def _results(one: Judged, baseline: Judged | None, seed: int) -> Iterator[Result]:
    yield Result(one.name, "score", Measured("score", (one.scores,)).estimate(seed))
    yield Result(one.name, "ended", share_of("ended", one.answers.ended).estimate(seed))
    if baseline is None or one is baseline:
        return
    gain = Measured("score gain", (one.scores, baseline.scores), difference)
    yield Result(one.name, gain.metric, gain.estimate(seed))
    found = count_wins(one.scores, baseline.scores)
    for metric in ("wins", "losses", "ties"):
        count = Estimate(float(getattr(found, metric)), math.nan, math.nan, len(one.scores))
        yield Result(one.name, metric, count)
    yield Result(one.name, "win rate", found.rate)


def _transcript(asked: Sequence[Any], found: Sequence[Judged]) -> Iterator[dict[str, Any]]:
    for number, prompt in enumerate(asked):
        answers = {
            one.name: {"response": one.answers.texts[number], "score": one.scores[number]}
            for one in found
        }
        yield {"prompt": prompt, "answers": answers}
