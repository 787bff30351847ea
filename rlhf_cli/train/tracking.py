"""Metrics sent to TensorBoard and its like, through Accelerate's trackers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from rlhf_cli.console import logger
from rlhf_cli.errors import RlhfError, first_line
from rlhf_cli.runs import log, run_files


class Trackers:
    """The trackers of a run; `metrics.jsonl` is written in any case.

    Args:
        names: as Accelerate calls them.
        out: the run folder; trackers that write files do so below it.
        settings: the configuration, to be stored with the run.

    Raises:
        RlhfError: a tracker cannot be started.
    """

    def __init__(self, names: Sequence[str], out: Path, settings: Mapping[str, Any]) -> None:
        self._open: dict[str, GeneralTracker] = {}
        if names:
            PartialState(cpu=True)  # trackers ask it which process speaks; here only one has any
        for name in names:
            try:
                self._open[name] = _start(name, out, settings)
            except Exception as error:
                raise RlhfError(
                    f"log.trackers: {name} cannot be started ({first_line(error)}). "
                    "Check its account and connection, or leave it out"
                ) from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send one line of metrics; a tracker that fails is told once and left out from then on."""
        for name, tracker in list(self._open.items()):
            try:
                tracker.log(dict(values), step=step)
            except Exception as error:
                logger.info(
                    f"log.trackers: {name} failed ({first_line(error)}); training goes on without"
                )
                del self._open[name]

    def close(self) -> None:
        """Let each tracker send what it still holds."""
        for tracker in self._open.values():
            tracker.finish()
        self._open = {}


def _start(name: str, out: Path, settings: Mapping[str, Any]) -> GeneralTracker:
    kind = LOGGER_TYPE_TO_CLASS[name]
    if kind.requires_logging_directory:
        tracker = kind(name, logging_dir=str(out / run_files.TRACKERS))
    else:
        tracker = kind(out.name)
    tracker.start()
    tracker.store_init_configuration(dict(_flat(log.hide_secrets(dict(settings)))))
    return tracker


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str | float]]:
    """Dotted keys with numbers, switches and text, which is what every tracker takes."""
    found: list[tuple[str, str | float]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key}.")
        else:
            plain = isinstance(value, bool | int | float | str)
            found.append((prefix + key, value if plain else str(value)))
    return found
