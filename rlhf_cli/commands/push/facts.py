"""What a model card says of a result: read from its run folder, without local paths and secrets."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_cli.commands.serve.facts import Served, find_folder, read_served
from rlhf_cli.config.paths import is_data_id
from rlhf_cli.data.checks.secret_patterns import mask_secrets
from rlhf_cli.data.config import list_paths
from rlhf_cli.errors import RlhfError
from rlhf_cli.evaluation.intervals import Estimate
from rlhf_cli.resources import SHIPPED
from rlhf_cli.runs import artifact, hub, log, manifest
from rlhf_cli.runs.run_files import CONFIG
from rlhf_cli.runs.settings import Settings, read_settings

_LOCAL_PATH = re.compile(
    r"(?:(?<![\w:/.~-])|(?<=path:)|(?<=file://))"
    r"(?:~\w*|\.\.|/[\w.+=@-]+)(?:/[\w.+=@-]+)*/([\w.+=@-]+)"
)
_LICENSE = re.compile(r"^license:\s*[\"']?([\w.-]+)", re.MULTILINE)


@dataclass(frozen=True)
class CardFacts:
    """Facts of a result for its card.

    Attributes:
        served: kind, base, adapter, template and positions.
        manifest: of the run; empty for a model folder that is no run.
        stages: each run of the chain, the first first, as (stage, name).
        base_model: hub id that the chain began with; empty if it began elsewhere.
        datasets: hub ids of all data of the run.
        config: text of the run's configuration; empty without one.
        license: of the base, by its card; empty if unknown.
    """

    served: Served
    manifest: Mapping[str, Any]
    stages: tuple[tuple[str, str], ...]
    base_model: str
    datasets: tuple[str, ...]
    config: str
    license: str
    results: tuple[Mapping[str, Any], ...] = field(default=())


def read_card_facts(given: str) -> CardFacts:
    """Read the facts of a run, or of a model folder.

    Raises:
        ConfigError: there is no such result.
        ModelError: the run is not finished.
    """
    served = read_served(given)
    folder = run_folder(given)
    settings = _settings(given)
    stages, base = trace_base(given)
    file = folder / CONFIG
    return CardFacts(
        served=served,
        manifest=manifest.read(folder),
        stages=stages,
        base_model=base,
        datasets=tuple(_datasets(settings)) if settings else (),
        config=file.read_text(encoding="utf-8") if file.is_file() else "",
        license=cached_license(base),
    )


def run_folder(given: str) -> Path:
    """The run folder of a run or of the model folder in it."""
    path = Path(given).expanduser().absolute()
    return path.parent if path.name == "model" else path


def _settings(given: str) -> Settings | None:
    """Settings of a run; None for others, and for configurations that are no longer valid."""
    try:
        return read_settings(given)
    except RlhfError:
        return None


def trace_base(given: str) -> tuple[tuple[tuple[str, str], ...], str]:
    """Follow `model.path` through the runs to the model that the first of them started from.

    Returns:
        (stage, name of the folder) of each run, the first first; and the hub id, or empty.
    """
    stages: list[tuple[str, str]] = []
    path, seen = given, set()
    while os.path.isdir(os.path.expanduser(path)) and path not in seen:
        seen.add(path)
        settings = _settings(path)
        if settings is not None:
            stages.append((settings.stage, run_folder(path).name))
            path = settings.config.model.path
        else:  # a merged model names what it was made of
            path = str(artifact.read(find_folder(path)).get("base") or "")
    known = "" if path in ("", SHIPPED, *seen) or os.path.isabs(path) else path
    return tuple(reversed(stages)), known


def _datasets(settings: Settings) -> Iterator[str]:
    for value in (settings.config.data.path, settings.config.data.eval):
        for path in list_paths(value):
            if path != SHIPPED and is_data_id(path) and not os.path.exists(path):
                yield path


def cached_license(hub_id: str) -> str:
    """Licence in the card of a base model that is in the cache; empty if unknown."""
    folder = hub.cached_snapshot(hub_id) if hub_id else None
    card = folder / "README.md" if folder else None
    if card is None or not card.is_file():
        return ""
    found = _LICENSE.search(card.read_text(encoding="utf-8", errors="replace"))
    return found[1] if found else ""


def without_local_paths(text: str) -> str:
    """Replace each path outside the working folder by its last part, and mask secrets."""
    return mask_secrets(_LOCAL_PATH.sub(r"\1", log.redact(text)))


def command_line(found: Mapping[str, Any]) -> str:
    """The command of a run, as typed; empty if unknown."""
    words = found.get("argv") or []
    return without_local_paths("rlhf " + shlex.join(words)) if words else ""


def metric_rows(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value before and value after of each held-out metric of a run, with its interval."""
    before, after = found.get("before") or {}, found.get("after") or {}
    intervals = found.get("intervals") or {}
    first, last = intervals.get("before") or {}, intervals.get("after") or {}
    return [
        (
            name,
            _shown(before.get(name), first.get(name)),
            _shown(after.get(name), last.get(name)),
        )
        for name in dict.fromkeys([*before, *after])
    ]


def _shown(value: Any, bounds: Sequence[float] | None) -> str:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "-"
    low, high = bounds or (math.nan, math.nan)
    return Estimate(value, low, high, 0).as_text(".4g")
