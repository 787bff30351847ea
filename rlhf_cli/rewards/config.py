from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from rlhf_cli.config.schema import Ge, Gt, Le
from rlhf_cli.rewards.sources.config import RewardSource


@dataclass(kw_only=True)
class RewardTerm(RewardSource):
    """One of several sources of scores."""

    weight: float = 1.0
    """What its scores are multiplied by in the sum."""

    name: str = ""
    """What its scores are called; empty takes that of the model or function."""


@dataclass(kw_only=True)
class RewardsConfig(RewardSource):
    """What scores responses: one source, or several under `terms`."""

    terms: list[RewardTerm] = field(default_factory=list)
    """Several sources, with the same keys and `weight` and `name` each, as in
    `[{function: a.py:score}, {model: runs/rm, weight: 0.5}]`."""

    combine: Literal["sum", "llama2"] = "sum"
    """`sum` adds up the terms by their weights. `llama2` (arXiv:2307.09288) takes the term `safety`
    where it is below `safety_threshold` or the row's column `safety` is true, else the term
    `helpfulness`, both probabilities; then their logit, whitened over the whole batch."""

    safety_threshold: Annotated[float, Gt(0), Le(1)] = 0.15
    """With `combine=llama2`: the probability under which a response counts as unsafe."""

    baseline: float = 0.0
    """Subtracted from every combined score."""

    scale: Literal["none", "running"] = "none"
    """`running` divides by the standard deviation of all combined scores so far."""

    clip: Annotated[float, Ge(0)] = 0.0
    """Hold what is left between minus and plus this; 0 off."""

    skip_special_tokens: bool = False
    """Leave all special tokens out of the texts that are scored; false leaves out only those that
    end or pad a response, so that a `<think>` that is one is seen."""

    @property
    def is_given(self) -> bool:
        """Whether anything scores."""
        return bool(self.terms or self.given)

    @property
    def all_terms(self) -> list[RewardTerm]:
        """The terms; a single source is one with weight 1."""
        if self.terms:
            return self.terms
        return [RewardTerm(**_fields(self))] if self.given else []

    @property
    def keys(self) -> list[str]:
        """Of each term, the key that its fields stand below."""
        if self.terms:
            return [f"reward.terms[{index}]" for index in range(len(self.terms))]
        return ["reward"] if self.given else []

    @property
    def names(self) -> list[str]:
        """Of each term, what its scores are called; a second `score` is `score_2`."""
        taken = {term.name for term in self.all_terms if term.name}
        found = []
        for term in self.all_terms:
            name, count = term.name or term.own_name, 1
            while not term.name and name in taken:
                count += 1
                name = f"{term.own_name}_{count}"
            taken.add(name)
            found.append(name)
        return found

    def missing(self) -> list[str]:
        """The line for a command that needs scores where nothing gives any."""
        if self.is_given:
            return []
        return [
            "reward.model: none given; need something that scores responses. "
            "Try reward.model=runs/reward, or reward.function=judge.py:score"
        ]

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        found = self._llama2_problems() if self.combine == "llama2" else []
        if not self.terms:
            found += self.source_problems("reward")
        else:
            default = RewardSource()
            found += [
                f"reward.{name}: given beside reward.terms; need one of the two. "
                "Write it as one of the terms"
                for name, value in _fields(self).items()
                if value != getattr(default, name)
            ]
        for key, term in zip(self.keys, self.terms, strict=False):
            if not term.given:
                found.append(f"{key}: got no source; need one of {', '.join(self.kinds)}")
            found += term.source_problems(key)
        counts = Counter(term.name for term in self.terms if term.name)
        found += [
            f"reward.terms: {count} of them are called {name}; need a name of its own for each"
            for name, count in counts.items()
            if count > 1
        ]
        if self.combine != "llama2" and self.safety_threshold != RewardsConfig.safety_threshold:
            found.append(
                "reward.safety_threshold: given without reward.combine=llama2, which alone reads it"
            )
        return found

    def _llama2_problems(self) -> list[str]:
        if sorted(term.name for term in self.terms) != ["helpfulness", "safety"]:
            return [
                "reward.combine: got llama2; need two terms with the names safety and helpfulness, "
                "as in reward.terms=[{name: safety, model: runs/safe, output: probability}, "
                "{name: helpfulness, model: runs/help, output: probability}]"
            ]
        found = []
        for key, term in zip(self.keys, self.terms, strict=True):
            if term.given[:1] in (["model"], ["classifier"]) and term.output != "probability":
                found.append(
                    f"{key}.output: got logit with reward.combine=llama2, which compares "
                    "probabilities; need output: probability"
                )
            if term.weight != 1:
                found.append(
                    f"{key}.weight: given with reward.combine=llama2, which takes one term or the "
                    "other; need it left out"
                )
        return found


def _fields(source: RewardSource) -> dict[str, Any]:
    return {item.name: getattr(source, item.name) for item in fields(RewardSource)}
