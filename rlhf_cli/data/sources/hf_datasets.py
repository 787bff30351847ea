"""Data sets that Hugging Face `datasets` loads: hub ids, folders like one, `save_to_disk`."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rlhf_cli.context import say
from rlhf_cli.data.config import Source
from rlhf_cli.data.sources.base import RawRow, RowSource, Side, Split
from rlhf_cli.data.sources.files import HELD_OUT, fingerprint, holds_rows
from rlhf_cli.errors import DataError, first_line
from rlhf_cli.runs import hub
from rlhf_cli.runs.data_files import is_saved, lists_configs


def is_hub_folder(path: Path, settings: Source) -> bool:
    """Whether a local folder is read as `datasets` reads it.

    So it is where `data.name` chooses a configuration, where its card (README.md) lists some, and
    where its rows lie in folders below it.
    """
    if not path.is_dir() or settings.data_dir:
        return False
    own = any(map(holds_rows, path.iterdir()))
    below = not own and any(map(holds_rows, path.glob("*/*")))
    return bool(settings.name or lists_configs(path) or below)


def open_hub(settings: Source, split: Split, side: Side) -> RowSource:
    """A data set as `datasets` loads it: downloaded once, then from its cache.

    Raises:
        DataError: it cannot be reached, or has no such configuration or split.
    """
    name = split.name or side
    wanted = f"{name}[{split.start}:{split.end}]" if split.sliced else name
    found = _load(settings, wanted)
    if not Path(settings.path).expanduser().exists():
        _keep_commit(settings, found)
    label = f"{settings.path}[{wanted}]"

    def rows() -> Iterator[RawRow]:
        for number, row in enumerate(found, start=1):
            yield RawRow(label, number, row, size=1)

    content = f"{found._fingerprint} {label}"
    return RowSource(settings, (label,), (), content, len(found), rows)


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Without the two lines of each of the hub's five attempts; what they come to is said once."""
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _from_cache() -> Iterator[None]:
    """Without the hub's five attempts, each later than the one before: 40 seconds in all."""
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _keep_commit(settings: Source, found: Any) -> None:
    """Note the commit that rows came from, which offline `datasets` chooses by itself.

    Raises:
        DataError: it is not the one that was asked for.
    """
    name = hub.rows_id(settings.path)
    wanted = hub.commit_of(name, settings.revision)
    if hub.is_commit(settings.revision):
        wanted = settings.revision
    files = " ".join(found.info.download_checksums or {})
    read = re.search(r"@([0-9a-f]{40})/", files)
    if read is None or read[1] == wanted:
        return
    if wanted:
        raise DataError(
            f"{settings.path}: need the rows of commit {wanted}, and offline there are those of "
            f"commit {read[1]} alone. Connect to the hub, or give data.revision={read[1]}"
        )
    say(f"data: {settings.path} from the cache of `datasets`, commit {read[1]}")
    hub.keep_commit(name, settings.revision, read[1])


def _load(settings: Source, split: str) -> Any:
    import datasets

    local = Path(settings.path).expanduser().exists()
    revision = None if local else hub.resolve_rows(settings.path, settings.revision)
    unreachable = not local and not revision
    revision = revision or settings.revision or None
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        # that its commit could not be asked for has shown that the hub is not reached
        cached = _from_cache() if unreachable else nullcontext()
        with _quiet(logging.getLogger("huggingface_hub")), cached:
            return datasets.load_dataset(
                settings.path,
                settings.name or None,
                revision=revision,
                split=split,
                data_dir=settings.data_dir or None,
            )
    except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        raise DataError(
            f"{settings.path}: no such file or folder here, and the hub cannot be reached or has "
            f"no such data set ({first_line(error)}). Check the name; offline (HF_HUB_OFFLINE), "
            "give a local file or folder"
        ) from error
    except Exception as error:  # datasets raises many kinds for names, splits and broken files
        raise DataError(
            f"{settings.path}: datasets cannot load it (data.name={settings.name or 'none'}, "
            f"data.split={split}): {first_line(error)}"
        ) from error


_SPLITS, _STATE = "dataset_dict.json", "state.json"


def open_saved(settings: Source, folder: Path, split: Split, side: Side) -> RowSource:
    """The rows of such a folder.

    Raises:
        DataError: it has no such split, or `datasets` cannot read it.
    """
    if settings.name:
        raise DataError(
            f"data.name: got {settings.name}, but {folder} was written by save_to_disk and has no "
            "configurations; leave it out"
        )
    chosen = _split_folder(folder, split, side)
    table = _load_saved(chosen)
    start, end = split.bounds(len(table)) if split.sliced else (0, len(table))
    label = chosen.name if chosen == folder else f"{folder.name}/{chosen.name}"

    def rows() -> Iterator[RawRow]:
        for index in range(start, end):
            yield RawRow(label, index + 1, table[index], size=1)

    written = sorted(chosen.glob("*.arrow"))
    content = f"{fingerprint([chosen / _STATE, *written])} {settings.split if split.sliced else ''}"
    return RowSource(settings, (label,), (), content, end - start, rows)


def _split_folder(folder: Path, split: Split, side: Side) -> Path:
    """The folder of one data set: of a folder of splits, that of the wanted one."""
    if not (folder / _SPLITS).is_file():
        if split.name not in ("", "train"):
            raise DataError(
                f"data.split: {folder} holds one data set and has no split {split.name}; slice its "
                "rows, as in data.split=[:100], or leave it out"
            )
        return folder
    names = sorted(child.name for child in folder.iterdir() if is_saved(child))
    wanted = [split.name] if split.name else ["train"] if side == "train" else list(HELD_OUT)
    found = [name for name in wanted if name in names]
    if not found:
        there = ", ".join(names) or "none"
        raise DataError(
            f"{folder}: no split {split.name or side}; save_to_disk wrote {there}. "
            f"Try data.split={names[0] if names else 'NAME'}"
        )
    return folder / found[0]


def _load_saved(folder: Path) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # of many kinds, for damaged files and for newer versions' columns
        raise DataError(
            f"{folder}: datasets cannot load what save_to_disk wrote ({first_line(error)})"
        ) from error
