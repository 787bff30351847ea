"""All that scores responses in a run: opened once, asked for each batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.console import logger
from rlhf_cli.context import RunContext
from rlhf_cli.distributed import Ranks
from rlhf_cli.errors import DataError
from rlhf_cli.rewards.combine import RunningDeviation, llama2, safety_tags, weighted_sum
from rlhf_cli.rewards.config import RewardsConfig, RewardTerm
from rlhf_cli.rewards.samples import Samples
from rlhf_cli.rewards.sources.endpoint import EndpointScorer
from rlhf_cli.rewards.sources.function import FunctionScorer
from rlhf_cli.rewards.sources.rules import LengthRule, PatternRule
from rlhf_cli.rewards.sources.scorer import Scorer, numbers

MAX_TOKENS = 4096
"""Of a forward pass, where the caller knows nothing better."""


@dataclass(frozen=True)
class Term:
    """One source of scores, opened.

    Attributes:
        name: what its scores are called.
        who: key and value that named it, for messages.
        weight: in the sum.
        scorer: gives the scores.
    """

    name: str
    who: str
    weight: float
    scorer: Scorer

    def score(self, samples: Samples) -> Tensor:
        """[n], fp64.

        Raises:
            DataError: it does not give a finite number for each sample.
        """
        given = self.scorer(samples) if len(samples) else []
        return torch.tensor(numbers(given, samples, self.who), dtype=torch.float64)


@dataclass(frozen=True)
class Scores:
    """What responses were given.

    Attributes:
        total: [n] fp32, the score that is learned from.
        by_term: name -> [n] fp32, what each term gave, before weights and all else.
    """

    total: Tensor
    by_term: dict[str, Tensor]


class Rewards:
    """Scores responses by all terms.

    Combined scores lose `baseline`, are divided by the running deviation, and are clipped, in this
    order.

    Attributes:
        terms: in the order of the configuration.
        deviation: of the combined scores so far; a part of the run's state.
    """

    def __init__(self, cfg: RewardsConfig, terms: list[Term], ranks: Ranks) -> None:
        self.cfg, self.terms, self.ranks = cfg, terms, ranks
        self.deviation = RunningDeviation()

    @property
    def nbytes(self) -> int:
        """Memory of all models."""
        return sum(term.scorer.nbytes for term in self.terms)

    def score(self, samples: Samples, *, observe: bool = True) -> Scores:
        """Score this rank's responses; all ranks call it together, each with its own.

        Args:
            samples: perhaps none.
            observe: let the running deviation see them; false where nothing is learned from them.

        Raises:
            DataError: a term does not give a finite number for each sample.
            ConfigError: a function does not take the samples' columns.
        """
        by_term = {term.name: term.score(samples) for term in self.terms}
        total = self._combine(by_term, samples) - self.cfg.baseline
        if self.cfg.scale == "running":
            if observe:
                self.deviation.observe(total.tolist(), self.ranks)
            total = total / self.deviation.value
        if self.cfg.clip:
            total = total.clamp(-self.cfg.clip, self.cfg.clip)
        return Scores(total.float(), {name: found.float() for name, found in by_term.items()})

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
            found = by_term[term.name]
            wrong = ((found < 0) | (found > 1)).nonzero().flatten()
            if len(wrong):
                index = int(wrong[0])
                raise DataError(
                    f"{term.who} gave {float(found[index]):g} for {samples.describe(index)}; "
                    "reward.combine=llama2 needs probabilities, from 0 to 1"
                )

    def state_dict(self) -> dict[str, Any]:
        """JSON values for a checkpoint."""
        return {"deviation": self.deviation.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.deviation.load_state_dict(state["deviation"])


def open_rewards(
    cfg: RewardsConfig,
    tokenizer: Any,
    ctx: RunContext,
    max_tokens: int = MAX_TOKENS,
    policy: Any | None = None,
) -> Rewards:
    """Load what scores, and say of each term what was loaded and how much memory it takes.

    Args:
        cfg: checked; at least one source.
        tokenizer: the policy's.
        ctx: device, compute type, and the ranks that score together.
        max_tokens: of a forward pass.
        policy: a `Policy`, whose base a reward model shares that is an adapter on it.

    Raises:
        ConfigError: a function cannot be imported.
        ModelError: a model cannot be loaded, or gives no scores.
        DataError: nobody listens at an endpoint.
    """
    terms = []
    for key, name, term in zip(cfg.keys, cfg.names, cfg.all_terms, strict=True):
        [kind] = term.given
        scorer = _open(kind, term, key, tokenizer, ctx, max_tokens, policy)
        who = f"{key}.{kind}: {getattr(term, kind)}"
        weight = f", times {term.weight:g}" if term.weight != 1 else ""
        memory = f", {scorer.nbytes / 1e6:,.1f} MB" if scorer.nbytes else ""
        logger.info(f"reward {name}: {scorer.described}{memory}{weight}")
        terms.append(Term(name, who, term.weight, scorer))
    return Rewards(cfg, terms, ctx.ranks)


def _open(
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
        endpoint = EndpointScorer(term, f"{key}.url")
        endpoint.require_listener()
        return endpoint
    if kind == "pattern":
        return PatternRule(term.pattern)
    if kind == "length_penalty":
        return LengthRule(term.length_penalty, term.free_length)
    if kind == "classifier":
        from rlhf_cli.rewards.sources.classifier import ClassifierScorer

        return ClassifierScorer(term, key, ctx)
    from rlhf_cli.rewards.sources.model import (
        ModelScorer,  # transformers, which a rule does without
    )

    return ModelScorer(term, key, tokenizer, ctx, max_tokens, policy)
