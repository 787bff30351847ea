"""Scores that show how good a reward model is: of responses, changed copies and labelled pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from rlhf_cli.commands.doctor.config import DoctorConfig
from rlhf_cli.commands.doctor.edits import HARMLESS, corrupt
from rlhf_cli.commands.doctor.responses import (
    PolicyResponses,
    labelled_pairs,
    load_reward,
    score,
)
from rlhf_cli.config.schema import no_rows
from rlhf_cli.console import logger, muted
from rlhf_cli.context import RunContext, precision_name
from rlhf_cli.errors import DataError
from rlhf_cli.evaluation.intervals import Values
from rlhf_cli.rewards.function import FunctionScorer
from rlhf_cli.rewards.rewards import CombinedReward
from rlhf_cli.rewards.samples import Samples
from rlhf_cli.rewards.scorer import check_scores

CHANGED_RESPONSES = 400
"""Most responses that are scored again after each harmless change."""

CORRUPTED_RESPONSES = 200
"""Most responses that are scored again after each corruption."""


@dataclass(frozen=True)
class Copies:
    """Scores of some responses and of their corrupted copies, [n] each.

    Attributes:
        original: scores of the responses.
        copy: scores of the copies.
        left_out: copies that the judge does not score lower, or that equal the response.
    """

    original: Values
    copy: Values
    left_out: int


@dataclass(frozen=True)
class RewardScores:
    """All that is known of a reward model on a policy's responses.

    Attributes:
        scores: [P, K], of K responses to each of P prompts.
        lengths: [P, K], tokens.
        judged: [P, K], scores of the judge; None without one.
        harmless: change that leaves the meaning -> scores after it, [p, K] for the first p prompts.
        precision: names of the compute dtype and of the other.
        other_precision: [P, K], scores in the other dtype.
        copies: corruption -> scores of responses and their copies.
        chosen: [n], scores of the chosen responses of labelled pairs; empty without any.
        rejected: [n], scores of the rejected ones.
    """

    scores: Values
    lengths: Values
    judged: Values | None
    harmless: dict[str, Values]
    precision: tuple[str, str]
    other_precision: Values
    copies: dict[str, Copies]
    chosen: Values
    rejected: Values


def measure(cfg: DoctorConfig, sampled: PolicyResponses, ctx: RunContext) -> RewardScores:
    """Score everything.

    Raises:
        ConfigError: the judge cannot be imported.
        DataError: the judge or the reward model gives no finite number, or there is no labelled
            pair.
    """
    judge = Judge(cfg.judge) if cfg.judge else None
    reward = load_reward(cfg, sampled.tokenizer, ctx)
    scores = sampled.matrix(score(reward, sampled.samples()))
    judged = sampled.matrix(judge(sampled.samples())) if judge else None
    labelled = _score_labelled(cfg, reward, sampled)
    other = torch.float32 if ctx.compute != torch.float32 else torch.bfloat16
    return RewardScores(
        scores=scores,
        lengths=sampled.lengths,
        judged=judged,
        harmless=_score_harmless(reward, sampled),
        copies=_score_copies(reward, judge, sampled, judged, cfg.seed),
        chosen=labelled[0::2],
        rejected=labelled[1::2],
        precision=(precision_name(ctx.compute), precision_name(other)),
        other_precision=_score_in(other, cfg, sampled, ctx),
    )


class Judge:
    """Scores of the user's function, in lists of floats."""

    def __init__(self, value: str) -> None:
        self.scorer = FunctionScorer(value, "judge")

    def __call__(self, samples: Samples) -> list[float]:
        """Scores of samples.

        Raises:
            DataError: it does not give each a finite number.
        """
        return check_scores(self.scorer(samples), samples, self.scorer.origin)


def _score_in(
    dtype: torch.dtype, cfg: DoctorConfig, sampled: PolicyResponses, ctx: RunContext
) -> Values:
    """Scores [P, K] of the reward model computed in another dtype."""
    with muted():
        reward = load_reward(cfg, sampled.tokenizer, replace(ctx, compute=dtype))
    return sampled.matrix(score(reward, sampled.samples()))


def _score_harmless(reward: CombinedReward, sampled: PolicyResponses) -> dict[str, Values]:
    prompts = min(len(sampled.prompts), max(1, CHANGED_RESPONSES // sampled.count))
    indices = range(prompts * sampled.count)
    texts = [sampled.responses.texts[index] for index in indices]
    changes = {"tokenized again": texts}
    changes |= {name: [change(text) for text in texts] for name, change in HARMLESS.items()}
    return {
        name: np.reshape(score(reward, sampled.changed(indices, changed)), (prompts, -1))
        for name, changed in changes.items()
        if name == "tokenized again" or changed != texts
    }


def _score_copies(
    reward: CombinedReward,
    judge: Judge | None,
    sampled: PolicyResponses,
    judged: Values | None,
    seed: int,
) -> dict[str, Copies]:
    """Scores of corrupted copies of a response to each prompt: the judge's best, else the first."""
    indices = _one_of_each(sampled, judged)
    texts = [sampled.responses.texts[index] for index in indices]
    unchanged = sampled.changed(indices, texts)
    original = np.array(score(reward, unchanged))
    own = None if judge is None else np.array(judge(unchanged))
    found = {}
    for name, changed in corrupt(texts, seed).items():
        samples = sampled.changed(indices, changed)
        worse = np.array([copy != text for copy, text in zip(changed, texts, strict=True)])
        if judge is not None and own is not None:
            worse &= np.array(judge(samples)) < own
        copy = np.array(score(reward, samples))
        found[name] = Copies(original[worse], copy[worse], int((~worse).sum()))
    return found


def _one_of_each(sampled: PolicyResponses, judged: Values | None) -> Sequence[int]:
    """Index of one response of each prompt that is not blank; at most `CORRUPTED_RESPONSES`."""
    count, texts, found = sampled.count, sampled.responses.texts, []
    for prompt in range(len(sampled.prompts)):
        own = [prompt * count + k for k in range(count) if texts[prompt * count + k].strip()]
        if own and judged is not None:
            own.sort(key=lambda index: -judged[index // count, index % count])
        found += own[:1]
    if not found:
        raise DataError("policy: all of its responses are blank, so nothing can be compared")
    return found[:CORRUPTED_RESPONSES]


def _score_labelled(cfg: DoctorConfig, reward: CombinedReward, sampled: PolicyResponses) -> Values:
    """Scores of labelled pairs, chosen and rejected in turn; empty without `data`."""
    if no_rows(cfg.data.path):
        return np.zeros(0)
    pairs = labelled_pairs(cfg, sampled)
    logger.info(f"labelled pairs: {len(pairs) // 2}")
    return np.array(score(reward, pairs))
