import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from os.path import basename
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from rlhf_cli.config.references import public_url
from rlhf_cli.config.schema import FunctionPath, Ge, Gt, Le, ModelPath, Unit
from rlhf_cli.config.values import format_value


@dataclass(kw_only=True)
class ScorerConfig:
    """Scorer of responses: one of `model`, `classifier`, `function`, `url`, or a rule."""

    model: Annotated[str, ModelPath("revision", "base")] = ""
    """Reward model: run of `rlhf reward`, or folder or hub id of a sequence classifier with one
    label; the score is read at the response's end token."""

    revision: str = ""
    """Branch, tag or commit of the hub id in `model` or `classifier`; empty takes its default
    branch."""

    base: Annotated[str, ModelPath("base_revision")] = ""
    """Base model of an adapter in `model`, if it is no longer where the adapter says."""

    base_revision: str = ""
    """Branch, tag or commit of the adapter's base; empty takes the one it was trained on."""

    classifier: Annotated[str, ModelPath("revision")] = ""
    """Folder or hub id of any sequence classifier; it uses its own tokenizer."""

    label: str | int = ""
    """Label of the classifier, by name or index, whose output is the score."""

    output: Literal["logit", "probability"] = "logit"
    """Score of a model or classifier: the logit, or its probability (softmax over the labels,
    sigmoid of a single one)."""

    reads: Literal["all", "response"] = "all"
    """Input of the classifier: prompt and response, or the response alone."""

    function: Annotated[str, FunctionPath()] = ""
    """Python function in a file, as `judge.py:score`; called as score(prompts=, responses=,
    **columns), returns one number per response."""

    url: str = ""
    """HTTP endpoint that receives {prompts, responses, columns} and returns {scores}, as JSON."""

    headers: dict[str, str] = field(default_factory=dict)
    """HTTP headers of requests to `url`, as in `{Authorization: "Bearer ${oc.env:TOKEN}"}`;
    secrets must come from the environment."""

    timeout: Annotated[float, Gt(0), Unit("seconds")] = 60.0
    """Timeout of a request to `url`."""

    retries: Annotated[int, Ge(0)] = 3
    """Retries of a failed request to `url`, after 0.5, 1, 2, ... seconds."""

    batch_size: Annotated[int, Ge(1), Unit("responses")] = 32
    """Batch size of requests to `url`, and of the classifier."""

    concurrency: Annotated[int, Ge(1), Unit("requests")] = 8
    """Requests to `url` at once, of each process; 1 sends a request when the one before it is
    answered."""

    pattern: str = ""
    """Rule: 1 for a response that contains a match of this regular expression, else 0."""

    length_penalty: Annotated[float, Ge(0)] = 0.0
    """Rule: minus this for each token of the response past `free_length`."""

    free_length: Annotated[int, Ge(0), Unit("tokens")] = 0
    """Response tokens that `length_penalty` does not count."""

    kinds: ClassVar[tuple[str, ...]] = (
        "model",
        "classifier",
        "function",
        "url",
        "pattern",
        "length_penalty",
    )
    """Fields that define a scorer, exactly one of which must be set."""

    read_by: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "base": ("model",),
        "base_revision": ("model",),
        "revision": ("model", "classifier"),
        "label": ("classifier",),
        "output": ("model", "classifier"),
        "reads": ("classifier",),
        "headers": ("url",),
        "timeout": ("url",),
        "retries": ("url",),
        "batch_size": ("url", "classifier"),
        "concurrency": ("url",),
        "free_length": ("length_penalty",),
    }
    """Options, and the kinds of scorer that read them."""

    @property
    def given(self) -> list[str]:
        """Kinds that are set; exactly one in a valid config."""
        return [name for name in self.kinds if getattr(self, name)]

    @property
    def own_name(self) -> str:
        """Default name of the scores."""
        kind = next(iter(self.given), "")
        if kind in ("model", "classifier"):
            return basename(getattr(self, kind).rstrip("/")) or kind
        if kind == "function":
            return self.function.rpartition(":")[2]
        return "length" if kind == "length_penalty" else kind

    def scorer_problems(self, at: str) -> list[str]:
        """Config errors, one line each.

        Args:
            at: config key of these fields.
        """
        given = self.given
        if len(given) > 1:
            each = ", ".join(f"{{{name}: {format_value(getattr(self, name))}}}" for name in given)
            advice = f". Several go in a list: reward.terms=[{each}]" if at == "reward" else ""
            return [f"{at}.{given[1]}: given beside {at}.{given[0]}; need one scorer{advice}"]
        found = self._unread_options(at, given)
        if self.url and not _is_http(self.url):
            found.append(
                f"{at}.url: got {public_url(self.url)}; need an address as "
                "http://localhost:8000/score"
            )
        found += self._header_problems(at)
        try:
            re.compile(self.pattern)
        except (re.error, RecursionError, OverflowError) as error:
            found.append(
                f"{at}.pattern: got {self.pattern}; need a regular expression of Python ({error})"
            )
        return found

    def _header_problems(self, at: str) -> list[str]:
        """Errors of headers that cannot be sent, and of a user in the url, which urllib drops."""
        found = [
            f"{at}.headers: {format_value(name)} is no header; need a name without spaces and a "
            "value of one line"
            for name, value in self.headers.items()
            if not (_HEADER_NAME.fullmatch(name) and str(value).isprintable())
        ]
        if self.url and _is_http(self.url) and urlsplit(self.url).username is not None:
            found.append(
                f"{at}.url: got a user before @{public_url(self.url).partition('://')[2]}; need "
                f"it in a header. Try {at}.headers='{{Authorization: \"Basic ${{oc.env:NAME}}\"}}'"
            )
        return found

    def _unread_options(self, at: str, given: list[str]) -> list[str]:
        """Errors of options that the given scorer does not read."""
        default = ScorerConfig()
        return [
            f"{at}.{name}: given without {' or '.join(f'{at}.{kind}' for kind in kinds)}, which "
            "alone read it"
            for name, kinds in self.read_by.items()
            if not {*kinds} & {*given} and getattr(self, name) != getattr(default, name)
        ]


@dataclass(kw_only=True)
class RewardTerm(ScorerConfig):
    """One of several scorers."""

    weight: float = 1.0
    """Weight of its scores in the sum."""

    name: str = ""
    """Name of its scores; empty takes that of the model or function."""


@dataclass(kw_only=True)
class RewardsConfig(ScorerConfig):
    """Reward of responses: one scorer, or several under `terms`."""

    terms: list[RewardTerm] = field(default_factory=list)
    """Several scorers, each with the same keys plus `weight` and `name`, as in
    `[{function: a.py:score}, {model: runs/rm, weight: 0.5}]`."""

    combine: Literal["sum", "llama2"] = "sum"
    """`sum` is the weighted sum of the terms. `llama2` (arXiv:2307.09288) takes the term `safety`
    if it is below `safety_threshold` or the row's column `safety` is true, else the term
    `helpfulness`, both probabilities; then the logit, whitened over the whole batch."""

    safety_threshold: Annotated[float, Gt(0), Le(1)] = 0.15
    """With `combine=llama2`: a response with a lower safety probability is unsafe."""

    baseline: float = 0.0
    """Constant subtracted from the combined score."""

    scale: Literal["none", "running"] = "none"
    """`running` divides by the running standard deviation of the combined scores."""

    clip: Annotated[float, Ge(0)] = 0.0
    """Clip the scaled score to [-clip, clip]; 0 is off."""

    skip_special_tokens: bool = False
    """Remove all special tokens from the scored texts; false removes only end and pad tokens, so
    that scorers see a `<think>` token."""

    @property
    def is_given(self) -> bool:
        """Whether any scorer is configured."""
        return bool(self.terms or self.given)

    @property
    def all_terms(self) -> list[RewardTerm]:
        """Terms of the reward; a single scorer is one with weight 1."""
        if self.terms:
            return self.terms
        return [RewardTerm(**_scorer_fields(self))] if self.given else []

    @property
    def keys(self) -> list[str]:
        """Config key of each term."""
        if self.terms:
            return [f"reward.terms[{index}]" for index in range(len(self.terms))]
        return ["reward"] if self.given else []

    @property
    def names(self) -> list[str]:
        """Name of each term's scores; a second `score` is `score_2`."""
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
        """Error for a command that needs a reward, if none is configured."""
        if self.is_given:
            return []
        return [
            "reward.model: none given; need something that scores responses. "
            "Try reward.model=runs/reward, or reward.function=judge.py:score"
        ]

    def problems(self) -> list[str]:
        """Config errors, one line each."""
        found = self._llama2_problems() if self.combine == "llama2" else []
        if not self.terms:
            found += self.scorer_problems("reward")
        else:
            default = ScorerConfig()
            found += [
                f"reward.{name}: given beside reward.terms; need one of the two. "
                "Write it as one of the terms"
                for name, value in _scorer_fields(self).items()
                if value != getattr(default, name)
            ]
        for key, term in zip(self.keys, self.terms, strict=False):
            if not term.given:
                found.append(f"{key}: got no scorer; need one of {', '.join(self.kinds)}")
            found += term.scorer_problems(key)
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


def _scorer_fields(cfg: ScorerConfig) -> dict[str, Any]:
    return {item.name: getattr(cfg, item.name) for item in fields(ScorerConfig)}


_HEADER_NAME = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
