"""The check of a composed configuration against its config class: every problem, all at once."""

import re
from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any, Literal, get_args, get_origin

from rlhf_cli.config import paths
from rlhf_cli.config.schema import (
    DataPath,
    Unfit,
    field_types,
    groups,
    is_group,
    is_union,
    key_type,
    knobs,
    need,
    show,
    unmark,
)
from rlhf_cli.config.suggest import unknown_key
from rlhf_cli.config.tree import flat
from rlhf_cli.config.values import choice, example, member, scalar
from rlhf_cli.resources import presets
from rlhf_cli.stages.registry import Command


@dataclass(frozen=True)
class Problem:
    """One line for the user."""

    key: str
    text: str
    about_data: bool = False
    """The line is about a data file (exit code 3), not about the configuration itself (2)."""


@dataclass(frozen=True)
class Checked:
    """A config instance, the plain values it was made from, and what is wrong with them.

    The instance has defaults that depend on the model as they are for it.
    """

    config: Any
    tree: dict[str, Any]
    problems: list[Problem]


def check(
    command: Command,
    tree: dict[str, Any],
    origins: dict[str, str],
    *,
    whole: bool = True,
    meant: Collection[str] = (),
) -> Checked:
    """Compare a composed tree with the command's config class.

    Args:
        command: Whose config class to compare with.
        tree: All keys with plain values; a path that exists becomes absolute in the result.
        origins: Where a key was set (`sft.yaml:7`, `command line`); keys left at their defaults
            are missing.
        whole: The tree has all that the user set. Where a recipe could not be read, keys that seem
            missing or contradictory may be fine.
        meant: Keys that unknown ones on the command line stand for; nothing is said of their
            values, which are not the user's.
    """
    walk = _Walk(command, origins, tree)
    walk.meant.update(meant)
    config = walk.group(command.config, tree, "", command.config())
    plain = asdict(config)  # as the user set it, so that a run is the same where more is known
    if hasattr(config, "fit_to_model"):
        config.fit_to_model()
    if whole:
        walk.across_fields()
    return Checked(config, plain, walk.problems)


def judge(command: Command, word: str) -> Unfit | None:
    """What is wrong with `key=value`, as it is typed, by itself; nothing if it can be set."""
    key, _, text = word.partition("=")
    if key in groups(command.config):
        if text in presets(key):
            return None
        key = f"{key}.path"
    kind = key_type(command.config, key)
    if kind is None:
        return Unfit()
    walk = _Walk(command, {}, {})
    value: Any = text
    try:
        value = _as_typed(kind, key, text)
        walk.fit(kind, value, key)
    except Unfit as error:
        knob = knobs(command.config).get(key)
        return walk.explain(error, kind, value, key, knob.default if knob else None)
    return Unfit() if walk.problems else None


def _as_typed(kind: Any, key: str, text: str) -> Any:
    """The value that `key=text` sets.

    Raises:
        Unfit: It is several values.
    """
    from rlhf_cli.config.compose import override_values  # Hydra: 0.2 s, only for suggestions
    from rlhf_cli.config.typed import NotOneValue, override

    try:
        return override_values([override(kind, key, text)])[key]
    except NotOneValue:
        raise Unfit("need one value") from None


class _Walk:
    def __init__(self, command: Command, origins: dict[str, str], tree: dict[str, Any]) -> None:
        self.command, self.origins, self.tree = command, origins, tree
        self.problems: list[Problem] = []
        self.meant: set[str] = set()
        self.nodes: list[Any] = []

    def add(self, key: str, text: str, *, about_data: bool = False) -> None:
        where = origin(key, self.origins)
        self.problems.append(Problem(key, f"{text}  ({where})" if where else text, about_data))

    def group(self, config: type[Any], tree: Any, prefix: str, default: Any) -> Any:
        """Make a config instance; bad values are replaced by defaults."""
        if not isinstance(tree, dict):
            text = f"{prefix}: got {show(tree)}; need keys below it, as in {prefix}.KEY=..."
            self.add(prefix, text)
            tree = {}
        kinds = field_types(config)
        for name, value in tree.items():
            if name not in kinds and "[" in prefix:
                key = _join(prefix, name)
                self.add(key, f"{key}: no such key; need one of {', '.join(kinds)}")
            elif name not in kinds:
                self.unknown(_join(prefix, name), value)
        values = {}
        for name, kind in kinds.items():
            key, fallback = _join(prefix, name), getattr(default, name)
            visit = self.group if is_group(kind) else self.leaf
            values[name] = visit(kind, tree.get(name, fallback), key, fallback)
        node = config(**values)
        self.nodes.append(node)
        return node

    def unknown(self, key: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for name, item in value.items():
                self.unknown(_join(key, name), item)
        else:
            given = {name: _shown(item) for name, item in flat(self.tree).items()}
            accepts = partial(judge, self.command)
            found = unknown_key(self.command, key, _shown(value), given, accepts)
            self.add(key, found.line)
            self.meant.update(found.meant)

    def leaf(self, kind: Any, value: Any, key: str, default: Any) -> Any:
        try:
            return self.fit(kind, value, key)
        except Unfit as error:
            refused = self.explain(error, kind, value, key, default)
            advice = f". Try {key}={refused.example}" if refused.example else ""
            text = f"{key}: got {show(value)}; {refused.need}{advice}"
            missing = isinstance(value, str) and isinstance(
                paths.input_mark(unmark(kind)[1]), DataPath
            )
            self.add(key, text, about_data=missing)
        return default

    def explain(self, error: Unfit, kind: Any, value: Any, key: str, default: Any) -> Unfit:
        """The same with what is needed, and with an example only if that one is accepted."""
        better = error.example or example(kind, value, default)
        usable = better and "[" not in key and self.accepts(kind, key, better)
        return Unfit(error.need or f"need {need(kind)}", better if usable else "")

    def accepts(self, kind: Any, key: str, text: str) -> bool:
        """Whether a value, as it is typed, fits the annotation of its key."""
        walk = _Walk(self.command, {}, {})
        try:
            walk.fit(kind, _as_typed(kind, key, text), key)
        except Unfit:
            return False
        return not walk.problems

    def fit(self, kind: Any, value: Any, key: str) -> Any:
        """The value as its type wants it.

        Raises:
            Unfit: It cannot be.
        """
        bare, marks = unmark(kind)
        if is_union(bare):
            part = member(bare, value)
            return self.fit(Annotated[part, *marks] if marks else part, value, key)
        if is_group(bare):
            return self.group(bare, value, key, bare())
        origin = get_origin(bare)
        if origin is Literal:
            return choice(get_args(bare), value)
        if origin is list and isinstance(value, list):
            kept = (self.item(get_args(bare)[0], v, f"{key}[{i}]") for i, v in enumerate(value))
            return [item for item in kept if item is not None]  # a bad one has its own line
        if origin is dict and isinstance(value, dict):
            return {k: self.item(get_args(bare)[1], v, _join(key, k)) for k, v in value.items()}
        return scalar(bare, marks, value)

    def item(self, kind: Any, value: Any, key: str) -> Any:
        """One value of a list or dict, with its own line if it is bad."""
        if is_group(kind):
            return self.group(kind, value, key, kind())
        return self.leaf(kind, value, key, None)

    def across_fields(self) -> None:
        """Ask every config for contradictions among keys that are fine each by itself."""
        named = {problem.key.partition("[")[0] for problem in self.problems} | self.meant
        bad = named & knobs(self.command.config).keys()
        mentioned = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, bad)) or '(?!)'})(?!\w)")
        for node in self.nodes:
            for line in node.problems() if hasattr(node, "problems") else []:
                if not mentioned.search(line):
                    self.add(line.partition(":")[0], line)


def _shown(value: Any) -> str:
    return "" if value in (None, "", [], {}) else show(value)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def origin(key: str, origins: dict[str, str]) -> str:
    """Where a key was set, itself or as part of a whole."""
    while key and key not in origins:
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    return origins.get(key, "")
