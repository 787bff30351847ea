import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from os.path import basename
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from rlhf_cli.config.references import public_url
from rlhf_cli.config.schema import FunctionPath, Ge, Gt, ModelPath, Unit
from rlhf_cli.config.values import format_value


@dataclass(kw_only=True)
class RewardSource:
    """What gives a score to a response: one of `model`, `classifier`, `function`, `url`, a rule."""

    model: Annotated[str, ModelPath("revision", "base")] = ""
    """Run of `rlhf reward`, or a folder or hub id of a sequence classifier with one label; the
    score is read at the response's end token."""

    revision: str = ""
    """Branch, tag or commit of the hub id in `model` or `classifier`; empty takes its default
    branch."""

    base: Annotated[str, ModelPath("base_revision")] = ""
    """With an adapter as `model`: the model it stands on, where that is no longer where the adapter
    says."""

    base_revision: str = ""
    """Branch, tag or commit of the adapter's base; empty takes the one it was trained on."""

    classifier: Annotated[str, ModelPath("revision")] = ""
    """Folder or hub id of any sequence classifier, which reads the text with its own tokenizer."""

    label: str | int = ""
    """Label of the classifier, by name or index, whose value is the score."""

    output: Literal["logit", "probability"] = "logit"
    """What is taken of a model or classifier: its raw output, or that as a probability (softmax
    over the labels; sigmoid of a single one)."""

    reads: Literal["all", "response"] = "all"
    """What the classifier is shown: prompt and response, or the response alone."""

    function: Annotated[str, FunctionPath()] = ""
    """Python function in a file, as `judge.py:score`; called as score(prompts=, responses=,
    **columns), returns a number for each response."""

    url: str = ""
    """HTTP endpoint that is sent {prompts, responses, columns} and answers {scores}, as JSON."""

    headers: dict[str, str] = field(default_factory=dict)
    """HTTP headers of a request to `url`, as in `{Authorization: "Bearer ${oc.env:TOKEN}"}`; a
    secret has to come from the environment."""

    timeout: Annotated[float, Gt(0), Unit("seconds")] = 60.0
    """Longest wait for an answer of `url`."""

    retries: Annotated[int, Ge(0)] = 3
    """How often a request to `url` is repeated where it is not answered, after 0.5, 1, 2, ...
    seconds."""

    batch_size: Annotated[int, Ge(1), Unit("responses")] = 32
    """Sent to `url`, or read by the classifier, at once."""

    pattern: str = ""
    """Rule: 1 for a response in which this regular expression is found, else 0."""

    length_penalty: Annotated[float, Ge(0)] = 0.0
    """Rule: minus this for each token of the response past `free_length`."""

    free_length: Annotated[int, Ge(0), Unit("tokens")] = 0
    """Tokens that `length_penalty` does not count."""

    kinds: ClassVar[tuple[str, ...]] = (
        "model",
        "classifier",
        "function",
        "url",
        "pattern",
        "length_penalty",
    )
    """The fields that make a source, of which one is given."""

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
        "free_length": ("length_penalty",),
    }
    """The other fields, and the sources that they say something about."""

    @property
    def given(self) -> list[str]:
        """The sources that are named; one, where all is well."""
        return [name for name in self.kinds if getattr(self, name)]

    @property
    def own_name(self) -> str:
        """What its scores are called where no name is given."""
        kind = next(iter(self.given), "")
        if kind in ("model", "classifier"):
            return basename(getattr(self, kind).rstrip("/")) or kind
        if kind == "function":
            return self.function.rpartition(":")[2]
        return "length" if kind == "length_penalty" else kind

    def source_problems(self, at: str) -> list[str]:
        """Contradictions, one line each.

        Args:
            at: the key that these fields stand below.
        """
        given = self.given
        if len(given) > 1:
            each = ", ".join(f"{{{name}: {format_value(getattr(self, name))}}}" for name in given)
            advice = f". Several go in a list: reward.terms=[{each}]" if at == "reward" else ""
            return [f"{at}.{given[1]}: given beside {at}.{given[0]}; need one source{advice}"]
        found = self._unread(at, given)
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
        """Headers that cannot be sent, and a user in the address, which urllib does not send."""
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

    def _unread(self, at: str, given: list[str]) -> list[str]:
        """Options of sources that are not given: they would change nothing, in silence."""
        default = RewardSource()
        return [
            f"{at}.{name}: given without {' or '.join(f'{at}.{kind}' for kind in kinds)}, which "
            "alone read it"
            for name, kinds in self.read_by.items()
            if not {*kinds} & {*given} and getattr(self, name) != getattr(default, name)
        ]


_HEADER_NAME = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
