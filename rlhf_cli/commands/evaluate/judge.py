"""Scores of models' responses by a judge function, and win rates against a baseline."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlhf_cli.commands.evaluate.config import EvaluateConfig
from rlhf_cli.commands.evaluate.targets import short_names, target_model
from rlhf_cli.commands.generator import Responses, TextGenerator
from rlhf_cli.commands.served.generator import open_generator
from rlhf_cli.console import logger
from rlhf_cli.context import RunContext
from rlhf_cli.data.prompts import PromptSet, load_prompts
from rlhf_cli.data.records.fields import prompt_to_json
from rlhf_cli.errors import DataError
from rlhf_cli.evaluation.intervals import Estimate, Measurement, mean_difference, proportion
from rlhf_cli.evaluation.metrics import count_wins
from rlhf_cli.evaluation.table import Result
from rlhf_cli.progress import ProgressCount
from rlhf_cli.rewards.function import FunctionScorer
from rlhf_cli.rewards.samples import Samples
from rlhf_cli.rewards.scorer import check_scores
from rlhf_cli.rollout.cuda_graphs import require_cuda


@dataclass(frozen=True)
class JudgedModel:
    """The responses of one model to all prompts, and their scores."""

    name: str
    responses: Responses
    scores: list[float]


def judge_models(cfg: EvaluateConfig, ctx: RunContext) -> tuple[list[Result], list[dict[str, Any]]]:
    """Generate responses of every model to all prompts, and score them.

    Returns:
        The results, and one object per prompt with every model's response and score.

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
    for path, name in zip(paths, short_names(paths), strict=True):
        responses = _generate(cfg, path, read, ctx)
        samples = Samples(
            prompts, responses.texts, responses.prompt_tokens, responses.tokens, read.columns
        )
        found.append(
            JudgedModel(name, responses, check_scores(scorer(samples), samples, scorer.origin))
        )
    baseline = found[-1] if cfg.baseline else None
    results = [result for one in found for result in _results(one, baseline, cfg.seed)]
    return results, list(_transcript(asked, found))


def _generate(cfg: EvaluateConfig, path: str, prompts: PromptSet, ctx: RunContext) -> Responses:
    with open_generator(cfg, target_model(cfg, path), ctx) as generator:
        return _responses(cfg, path, prompts, generator)


def _responses(
    cfg: EvaluateConfig, path: str, prompts: PromptSet, generator: TextGenerator
) -> Responses:
    taken, tokens = generator.encode(prompts)
    if len(taken) < len(prompts):
        raise DataError(
            f"{path}: its chat template refuses {len(prompts) - len(taken)} of {len(prompts)} "
            "prompts (see above), and models are compared on the same ones. Leave them out"
        )
    torch.manual_seed(cfg.sampling.seed)  # the same random numbers for every model
    responses = Responses([], [], [], [])
    with ProgressCount("answers", len(tokens)) as progress:
        for batch in generator.generate(tokens, cfg.sampling, cfg.batch_size):
            progress.add(len(batch.texts))
            responses.extend(batch)
    logger.info(
        f"{path}: {len(responses.texts)} answers, {sum(responses.ended)} ended by themselves"
    )
    return responses


def _results(one: JudgedModel, baseline: JudgedModel | None, seed: int) -> Iterator[Result]:
    yield Result(one.name, "score", Measurement("score", (one.scores,)).estimate(seed))
    yield Result(one.name, "ended", proportion("ended", one.responses.ended).estimate(seed))
    if baseline is None or one is baseline:
        return
    gain = Measurement("score gain", (one.scores, baseline.scores), mean_difference)
    yield Result(one.name, gain.metric, gain.estimate(seed))
    found = count_wins(one.scores, baseline.scores)
    for metric in ("wins", "losses", "ties"):
        count = Estimate(float(getattr(found, metric)), math.nan, math.nan, len(one.scores))
        yield Result(one.name, metric, count)
    yield Result(one.name, "win rate", found.rate)


def _transcript(asked: Sequence[Any], found: Sequence[JudgedModel]) -> Iterator[dict[str, Any]]:
    for number, prompt in enumerate(asked):
        answers = {
            one.name: {"response": one.responses.texts[number], "score": one.scores[number]}
            for one in found
        }
        yield {"prompt": prompt, "answers": answers}
