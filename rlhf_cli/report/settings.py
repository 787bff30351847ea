"""Configuration of runs: what was set and where, and in what several runs differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlhf_cli.config.schema import flatten
from rlhf_cli.registry import COMMANDS
from rlhf_cli.report.text import NONE, clean, show_value
from rlhf_cli.runs.manifest import ORIGINS
from rlhf_cli.runs.record import RunRecord


@dataclass(frozen=True)
class Setting:
    """A key with its value.

    Attributes:
        key: dotted.
        value: as one types it.
        default: value of a run that does not set the key; empty where it is not known.
        origin: recipe and line, preset, or `command line`; empty for a default, or if not recorded.
    """

    key: str
    value: str
    default: str
    origin: str


def defaults(stage: str) -> dict[str, Any]:
    """Default of every key of a stage; empty for a stage of another tool."""
    command = COMMANDS.get(stage)
    return flatten(asdict(command.config())) if command else {}


def split_settings(record: RunRecord) -> tuple[list[Setting], list[Setting]]:
    """The keys that somebody set, and all others.

    A run of an older version did not record where its keys were set; what differs from the default
    is then taken for set.
    """
    usual = defaults(record.stage)
    origins = record.manifest.get(ORIGINS)
    known = origins if isinstance(origins, Mapping) else None
    changed: list[Setting] = []
    rest: list[Setting] = []
    for key, value in record.options.items():
        default = usual.get(key)
        where = clean(known.get(key, ""), 120) if known is not None else ""
        is_set = bool(where) if known is not None else key not in usual or value != default
        shown = show_value(default) if key in usual else ""
        setting = Setting(clean(key, 100), show_value(value)[:400], shown, where)
        (changed if is_set else rest).append(setting)
    return changed, rest


@dataclass(frozen=True)
class Difference:
    """A key in which runs differ.

    Attributes:
        key: dotted.
        values: of each run; a dash where a run lacks the key.
        shared: whether all runs have the key.
    """

    key: str
    values: Sequence[str]
    shared: bool


NO_DIFFERENCE = ("log.",)
"""Beginnings of keys that change nothing about a run."""


def differences(records: Sequence[RunRecord]) -> list[Difference]:
    """Keys whose values are not the same in all runs, in the order of their configurations."""
    every = [record.options for record in records]
    keys = dict.fromkeys(key for options in every for key in options)
    found = []
    for key in keys:
        if key.startswith(NO_DIFFERENCE):
            continue
        values = [show_value(options[key]) if key in options else NONE for options in every]
        if len({*values}) > 1:
            shared = all(key in options for options in every)
            found.append(Difference(clean(key, 100), [value[:200] for value in values], shared))
    return found
