"""Combined reward of a run: loads all scorers, scores each batch, combines the scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.console import logger
from rlhf_cli.context import RunContext
from rlhf_cli.data.records.fields import parse_bool
from rlhf_cli.data.report import MalformedRow
from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.errors import DataError
from rlhf_cli.http_client import run_concurrently
from rlhf_cli.losses.advantages import whiten
from rlhf_cli.memory.phase import phase
from rlhf_cli.rewards.config import RewardsConfig, RewardTerm
from rlhf_cli.rewards.function import FunctionScorer
from rlhf_cli.rewards.http import HTTPScorer
from rlhf_cli.rewards.samples import Samples
from rlhf_cli.rewards.scorer import LengthPenalty, PatternScorer, Scorer, check_scores

MAX_TOKENS = 4096
"""Default tokens per forward pass."""

PROBABILITY_MARGIN = 1e-6
"""Probabilities are clamped to this distance from 0 and 1, so that a logit is at most 13.8."""


@dataclass(frozen=True)
class WeightedScorer:
    """A loaded scorer with its name and weight.

    Attributes:
        name: name of its scores.
        origin: config key and value of the scorer, for messages.
        weight: weight in the sum.
        scorer: computes the scores.
        is_collective: all ranks call the scorer together, those without samples too.
    """

    name: str
    origin: str
    weight: float
    scorer: Scorer
    is_collective: bool = False

    def score(self, samples: Samples) -> Tensor:
        """Scores [n], fp64, not weighted.

        Raises:
            DataError: the scorer does not return a finite number for each sample.
        """
        given = self.scorer(samples) if len(samples) or self.is_collective else []
        return torch.tensor(check_scores(given, samples, self.origin), dtype=torch.float64)


@dataclass(frozen=True)
class Scores:
    """Scores of a batch of responses.

    Attributes:
        total: [n] fp32, combined score to train on.
        by_term: name -> [n] fp32, raw score of each term.
    """

    total: Tensor
    by_term: dict[str, Tensor]


class CombinedReward:
    """Scores responses by all terms and combines the scores.

    The combined score minus `baseline` is divided by the running standard deviation, then clipped.

    Attributes:
        terms: scorers in the order of the configuration.
        deviation: standard deviation of combined scores so far; part of the run's state.
    """

    def __init__(self, cfg: RewardsConfig, terms: list[WeightedScorer], ranks: Ranks) -> None:
        self.cfg, self.terms, self.ranks = cfg, terms, ranks
        self.deviation = RunningStd()

    @property
    def nbytes(self) -> int:
        """Memory of all models, bytes."""
        return sum(term.scorer.nbytes for term in self.terms)

    @phase("score")
    def score(self, samples: Samples, *, observe: bool = True) -> Scores:
        """Score this rank's responses; collective: every rank calls it with its own.

        Args:
            samples: samples of this rank; may be empty.
            observe: update the running deviation; false for evaluation.

        Raises:
            DataError: a scorer does not return a finite number for each sample.
            ConfigError: a function does not accept the samples' columns.
        """
        by_term = self._score_terms(samples)
        total = self._combine(by_term, samples) - self.cfg.baseline
        if self.cfg.scale == "running":
            if observe:
                self.deviation.update(total.tolist(), self.ranks)
            total = total / self.deviation.value
        if self.cfg.clip:
            total = total.clamp(-self.cfg.clip, self.cfg.clip)
        return Scores(total.float(), {name: scores.float() for name, scores in by_term.items()})

    def _score_terms(self, samples: Samples) -> dict[str, Tensor]:
        """Scores [n] of each term, in the order of the terms; all endpoints are asked at once."""
        remote = [term for term in self.terms if isinstance(term.scorer, HTTPScorer)]
        answers = run_concurrently(
            lambda term: term.score(samples), remote, len(remote), in_order=True
        )
        found = {term.name: scores for term, scores in zip(remote, answers, strict=True)}
        found |= {term.name: term.score(samples) for term in self.terms if term not in remote}
        return {term.name: found[term.name] for term in self.terms}

    def _combine(self, by_term: dict[str, Tensor], samples: Samples) -> Tensor:
        if self.cfg.combine == "sum":
            return weighted_sum(by_term, [term.weight for term in self.terms])
        self._require_probabilities(by_term, samples)
        return llama2(
            by_term["safety"],
            by_term["helpfulness"],
            safety_tags(samples.columns, len(samples)),
            self.cfg.safety_threshold,
            self.ranks,
        )

    def _require_probabilities(self, by_term: dict[str, Tensor], samples: Samples) -> None:
        for term in self.terms:
            scores = by_term[term.name]
            outside = ((scores < 0) | (scores > 1)).nonzero().flatten()
            if len(outside):
                index = int(outside[0])
                raise DataError(
                    f"{term.origin} gave {float(scores[index]):g} for {samples.describe(index)}; "
                    "reward.combine=llama2 needs probabilities, from 0 to 1"
                )

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint, as JSON values."""
        return {"deviation": self.deviation.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.deviation.load_state_dict(state["deviation"])


def weighted_sum(by_term: Mapping[str, Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted sum of the terms' scores, [n]."""
    parts = [weight * score for weight, score in zip(weights, by_term.values(), strict=True)]
    return torch.stack(parts).sum(0)


def llama2(
    safety: Tensor, helpfulness: Tensor, tagged: Tensor, threshold: float, ranks: Ranks
) -> Tensor:
    """LLaMA-2's combination of two reward models (Touvron et al. 2023, arXiv:2307.09288, 3.2.3).

    Args:
        safety: [n], probabilities.
        helpfulness: [n], probabilities.
        tagged: [n] bool, True for prompts where safety always counts.
        threshold: safety below this counts.
        ranks: ranks whose responses are whitened together.

    Returns:
        [n], fp64: logit of safety where it counts, of helpfulness elsewhere, whitened.
    """
    chosen = torch.where(tagged | (safety < threshold), safety, helpfulness).double()
    logits = torch.logit(chosen.clamp(PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN))
    return whiten_scores(logits, ranks)


def whiten_scores(scores: Tensor, ranks: Ranks) -> Tensor:
    """Whiten scores [n] to mean 0 and variance 1 over all ranks; equal or single scores give 0."""
    all_scores = ranks.all_gather_concat(scores).double()
    if len(all_scores) < 2:
        return torch.zeros_like(scores)
    every = torch.ones_like(scores, dtype=torch.bool)
    return whiten(scores, every, all_values=all_scores)


def safety_tags(columns: Mapping[str, Sequence[Any]], count: int) -> Tensor:
    """Column `safety` of the rows, [n] bool; False where missing or empty.

    Raises:
        DataError: a value is neither true nor false.
    """
    values = columns.get("safety", [None] * count)
    try:
        tags = [value is not None and parse_bool("safety", value) for value in values]
    except MalformedRow as error:
        raise DataError(f"column {error}, or leave it out; see reward.combine=llama2") from error
    return torch.tensor(tags, dtype=torch.bool)


class RunningStd:
    """Standard deviation of all numbers so far, over all ranks (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def update(self, values: Sequence[float], ranks: Ranks) -> None:
        """Add numbers; collective over ranks."""
        every = [value for part in ranks.all_gather_json(list(values)) for value in part]
        if not every:
            return
        mean = math.fsum(every) / len(every)
        squares = math.fsum((value - mean) ** 2 for value in every)
        total = self.count + len(every)
        shift = mean - self.mean
        self.squares += squares + shift**2 * self.count * len(every) / total
        self.mean += shift * len(every) / total
        self.count = total

    @property
    def value(self) -> float:
        """Unbiased standard deviation; 1 while all numbers are equal and have no scale."""
        if self.count < 2:
            return 1.0
        deviation = math.sqrt(self.squares / (self.count - 1))
        return deviation if deviation > 1e-8 else 1.0

    def state_dict(self) -> dict[str, float]:
        """State for a checkpoint, as JSON values."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore the state that `state_dict` returned."""
        self.count = int(state["count"])
        self.mean, self.squares = state["mean"], state["squares"]


def load_combined_reward(
    cfg: RewardsConfig,
    tokenizer: Any,
    ctx: RunContext,
    max_tokens: int = MAX_TOKENS,
    policy: Any | None = None,
) -> CombinedReward:
    """Load all scorers; logs what each is and the memory it takes.

    Args:
        cfg: checked; at least one scorer.
        tokenizer: the policy's; None for texts that no policy of this command wrote.
        ctx: device, compute type, and the ranks that score together.
        max_tokens: tokens per forward pass.
        policy: a `Policy`, whose base is shared with a reward model that is an adapter on it.

    Raises:
        ConfigError: a function cannot be imported.
        ModelError: a model cannot be loaded, or is no reward model.
        DataError: an endpoint does not respond.
    """
    terms = []
    for key, name, term in zip(cfg.keys, cfg.names, cfg.all_terms, strict=True):
        [kind] = term.given
        scorer = _load_scorer(kind, term, key, tokenizer, ctx, max_tokens, policy)
        origin = f"{key}.{kind}: {getattr(term, kind)}"
        weight = f", times {term.weight:g}" if term.weight != 1 else ""
        memory = f", {scorer.nbytes / 1e6:,.1f} MB" if scorer.nbytes else ""
        logger.info(f"reward {name}: {scorer.description}{memory}{weight}")
        collective = kind == "model" and ctx.ranks.sharded
        terms.append(WeightedScorer(name, origin, term.weight, scorer, collective))
    return CombinedReward(cfg, terms, ctx.ranks)


def _load_scorer(
    kind: str,
    term: RewardTerm,
    key: str,
    tokenizer: Any,
    ctx: RunContext,
    max_tokens: int,
    policy: Any | None,
) -> Scorer:
    if kind == "function":
        return FunctionScorer(term.function, f"{key}.function")
    if kind == "url":
        endpoint = HTTPScorer(term, f"{key}.url")
        endpoint.require_reachable()
        return endpoint
    if kind == "pattern":
        return PatternScorer(term.pattern)
    if kind == "length_penalty":
        return LengthPenalty(term.length_penalty, term.free_length)
    # these import transformers, which the others do without
    if kind == "classifier":
        from rlhf_cli.rewards.classifier import ClassifierScorer

        return ClassifierScorer(term, key, ctx)
    from rlhf_cli.rewards.reward_model import RewardModelScorer

    return RewardModelScorer(term, key, tokenizer, ctx, max_tokens, policy)
