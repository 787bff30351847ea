"""Arguments of `rlhf data show`, `stats` and `check`: a file, keys of a stage, and own options."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rlhf_cli.config import recipe
from rlhf_cli.config.args import CommandLine, Override, parse
from rlhf_cli.config.command import Command
from rlhf_cli.config.schema import options
from rlhf_cli.config.suggest import nearest
from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.records.reader import RecordReader
from rlhf_cli.data.records.types import ANY_RECORDS, kind_name
from rlhf_cli.data.report import DataReport
from rlhf_cli.data.sources.mixture import Mixture, open_sources
from rlhf_cli.errors import ConfigError, DataError
from rlhf_cli.preflight.hub import fetch_named
from rlhf_cli.registry import COMMANDS
from rlhf_cli.resolve import Resolved, resolve
from rlhf_cli.resources import SHIPPED
from rlhf_cli.runs import hub, log
from rlhf_cli.stages.config import StageConfig

if TYPE_CHECKING:
    from rlhf_cli.stages.inspection import StageRows

STAGES = tuple(name for name, command in COMMANDS.items() if command.trains)

STAGE_OF_KIND = {
    "preference": "dpo",
    "ranked": "reward",
    "labelled": "bco",
    "labelled_text": "reward",
    "scored": "reward",
    "scored_text": "reward",
    "chat": "sft",
    "prompt_completion": "sft",
    "text": "pretrain",
    "prompt": "ppo",
}
"""Kind of record -> the stage that most of its rows are for."""

PREFLIGHT = "rlhf_cli.preflight.commands:rows"
_SWITCHES = ("-m", "--multirun", "--cfg", "--provenance")


@dataclass(frozen=True)
class RowsRequest:
    """What `rlhf data ACTION` was asked for.

    Attributes:
        stage: name of the stage whose view of the rows is asked for.
        guessed_from: kind of the rows that the stage was guessed from; empty if it was given.
        config: configuration of the stage.
        options: option of the action -> its text.
    """

    stage: str
    guessed_from: str
    config: StageConfig
    options: Mapping[str, str] = field(default_factory=dict)

    def open(self) -> StageRows:
        """Load the tokenizer and open the rows; say which stage was guessed.

        Raises:
            DataError: the rows do not exist.
            ModelError: the tokenizer cannot be loaded, or lacks what the rows need.
        """
        from rlhf_cli.stages.inspection import open_stage_rows  # transformers, for a second

        if self.guessed_from:
            guess = f"guessed from the {self.guessed_from} rows; another: stage=NAME"
            print(f"stage: {self.stage}, {guess}", file=sys.stderr)
        return open_stage_rows(self.config, self.stage)


def read_request(words: Sequence[str], names: Sequence[str]) -> RowsRequest:
    """Parse and check the arguments; keys are composed and checked as those of a run.

    Args:
        words: arguments after the action.
        names: options of the action, each given as `NAME=TEXT`.

    Raises:
        ConfigError: an argument is wrong; all problems are named.
        DataError: the file does not exist, or holds rows of no known kind.
    """
    for word in words:
        if word in _SWITCHES:
            raise ConfigError(f"{word}: a switch of runs, not of rlhf data. Leave it out")
    given, rest = split_options(words, ("stage", *names))
    _refuse_misspelled(rest, ("stage", *names))
    stage, kind = given.pop("stage", ""), ""
    if stage and stage not in STAGES:
        close = nearest(stage, STAGES)
        advice = f"Try stage={close}" if close else "Leave it out to have it guessed from the rows"
        raise ConfigError(f"stage: got {stage}; need one of {', '.join(STAGES)}. {advice}")
    if not stage:
        stage = _stage_of_recipes(rest)
    if not stage:
        kind = _first_kind(rest)
        stage = STAGE_OF_KIND[kind]
    config = _resolve(stage, rest)
    return RowsRequest(stage, kind, config, given)


def split_options(words: Iterable[str], names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split arguments into an action's options and all others; `--row 3` is `row=3`.

    Raises:
        ConfigError: an option is given twice, or without a value.
    """
    found: dict[str, str] = {}
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, text = word.removeprefix("--").partition("=")
        if name not in names or not (equals or word.startswith("--")):
            others.append(word)
            continue
        text = text if equals else next(rest, "")
        if not text:
            raise ConfigError(f"{name}: got no value. Try {name}=VALUE")
        if name in found:
            raise ConfigError(f"{name}: given twice, as {found[name]} and as {text}; need it once")
        found[name] = text
    return found, others


def _refuse_misspelled(words: Iterable[str], names: Sequence[str]) -> None:
    """Refuse `fromat=json`, for which the stage's keys have no suggestion."""
    known = {key for name in STAGES for key in options(COMMANDS[name].config)}
    for word in words:
        key, equals, text = word.removeprefix("--").partition("=")
        close = nearest(key, names, 0.75)
        if equals and close and key not in known and not nearest(key, known, 0.85):
            raise ConfigError(f"{key}: no such option; did you mean {close}? Try {close}={text}")


def _stage_of_recipes(words: Sequence[str]) -> str:
    """The stage that the recipes of the arguments are for; empty without recipes.

    Raises:
        ConfigError: a recipe cannot be read, or none of them names its stage.
    """
    names = [word.removeprefix("--").removeprefix("config=") for word in words]
    given = [n for n, word in zip(names, words, strict=True) if n != word.removeprefix("--")]
    stages = [read.stage for name in given for read in recipe.read_chain(name) if read.stage]
    if given and not stages:
        raise ConfigError(f"stage: config={given[-1]} names none; need one. Try stage={STAGES[0]}")
    return stages[-1] if stages else ""


def _first_kind(words: list[str]) -> str:
    """Kind of the first readable row of the arguments' data.

    Raises:
        DataError: there is none, or it is of no known kind.
    """
    line = parse(_rows_command("sft"), words)
    keys = [one for one in line.overrides if one.key == "data" or one.key.startswith("data.")]
    if not any(one.key in ("data", "data.path") for one in keys):
        raise ConfigError("data: no file given. Try rlhf data show rows.jsonl, or config=RECIPE")
    data = _check_data(keys, line.problems)
    cfg = replace(data, max_bad_rows=sys.maxsize, eval="none")
    mixture = Mixture(sources := open_sources(cfg, cfg.path, "sft", "train"), [None] * len(sources))
    return _kind_of(mixture, cfg)


def resolve_data(words: list[str]) -> DataConfig:
    """Compose and check arguments that are keys of `data` only, for an action without a stage.

    Raises:
        ConfigError: an argument is wrong; all problems are named.
        DataError: the file does not exist.
    """
    line = parse(_rows_command("sft"), words)
    others = [one.key for one in line.overrides if one.key.partition(".")[0] != "data"]
    line.problems += [f"{key}: no key of this action; need keys of data" for key in others]
    return _check_data([one for one in line.overrides if one.key not in others], line.problems)


def _check_data(keys: list[Override], problems: list[str]) -> DataConfig:
    line = CommandLine(overrides=[*keys, Override("model", SHIPPED)], problems=problems)
    line.multirun = True  # notes are printed when the stage is known
    data: DataConfig = _checked(_rows_command("sft"), line).config.data
    return data


def _kind_of(mixture: Mixture, cfg: DataConfig) -> str:
    report = DataReport(mixture.files)
    settings = [source.settings for source in mixture.sources]
    reader = RecordReader(cfg, "a stage", ANY_RECORDS, report, settings)
    first = next(reader.read(mixture.rows()), None)
    if first is None:
        lines = [f"{mixture.label}: no row can be read", *report.left_out_lines()]
        raise DataError("\n".join(lines))
    text_only = getattr(first.record, "prompt", None) == ""
    return kind_name(first.record) + ("_text" if text_only else "")


def _rows_command(stage: str) -> Command:
    """The stage's command, with a preflight of what its rows need, and a file as first argument."""
    return replace(COMMANDS[stage], preflight=PREFLIGHT, positional="data")


def _resolve(stage: str, words: list[str]) -> StageConfig:
    """Compose and check the keys, with the shipped model where none is given."""
    command = _rows_command(stage)
    line = parse(command, words)
    if not line.recipes:
        if not line.sets("model", "model.path", "model.tokenizer", "model.init"):
            line.overrides.append(Override("model", SHIPPED))
            print(f"model: {SHIPPED}, the shipped one; yours: model=FOLDER", file=sys.stderr)
        needs = (need.partition("=") for need in command.needs.split())
        if not any(one.key.startswith("reward") for one in line.overrides):
            line.overrides += [Override(key, text) for key, _, text in needs]
    config: StageConfig = _checked(command, line).config
    return config


def _checked(command: Command, line: CommandLine) -> Resolved:
    """Resolve a command line, and fetch what its model and data have on the hub."""
    hub.set_commits({})
    with log.redacted():
        resolved = resolve(command, line)
        tree = {name: resolved.tree[name] for name in ("model", "data")}
        fetch_named(command, resolved.config, tree)
    return resolved
