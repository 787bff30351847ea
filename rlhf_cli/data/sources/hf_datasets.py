"""Data sets that Hugging Face `datasets` loads: hub ids, folders like one, `save_to_disk`."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rlhf_cli.console import logger
from rlhf_cli.data.config import SourceConfig
from rlhf_cli.data.sources.base import DataSource, DefaultSplit, RawRow, Split
from rlhf_cli.data.sources.files import HELD_OUT_SPLITS, fingerprint_files, is_data_file
from rlhf_cli.errors import DataError, first_line
from rlhf_cli.runs import hub
from rlhf_cli.runs.inputs import card_lists_configs, is_saved_dataset


def is_hub_folder(path: Path, settings: SourceConfig) -> bool:
    """Whether a local folder is loaded through `datasets`, as a hub data set is.

    True if `data.name` names a configuration, if its card (README.md) lists configurations, or if
    its data files are all in subfolders.
    """
    if not path.is_dir() or settings.data_dir:
        return False
    direct = any(map(is_data_file, path.iterdir()))
    nested = not direct and any(map(is_data_file, path.glob("*/*")))
    return bool(settings.name or card_lists_configs(path) or nested)


def open_hub_dataset(
    settings: SourceConfig, split: Split, default_split: DefaultSplit
) -> DataSource:
    """Open a data set through `datasets.load_dataset`: downloaded once, then from its cache.

    Raises:
        DataError: it cannot be reached, or has no such configuration or split.
    """
    name = split.name or default_split
    wanted = f"{name}[{split.start}:{split.end}]" if split.sliced else name
    dataset = _load_from_hub(settings, wanted)
    if not Path(settings.path).expanduser().exists():
        _record_commit(settings, dataset)
    label = f"{settings.path}[{wanted}]"

    def rows() -> Iterator[RawRow]:
        for number, row in enumerate(dataset, start=1):
            yield RawRow(label, number, row, size=1)

    fingerprint = f"{dataset._fingerprint} {label}"
    return DataSource(settings, (label,), (), lambda: fingerprint, len(dataset), rows)


@contextmanager
def _hide_warnings(logger: logging.Logger) -> Iterator[None]:
    """Hide the hub's warnings about its five attempts; the final error is reported once."""
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _hub_offline() -> Iterator[None]:
    """Set the hub offline, which avoids its five attempts with backoff (40 seconds)."""
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _record_commit(settings: SourceConfig, dataset: Any) -> None:
    """Record the commit of the rows; offline, `datasets` chooses one by itself.

    Raises:
        DataError: it is not the commit that was asked for.
    """
    name = hub.dataset_key(settings.path)
    wanted = hub.resolved_commit(name, settings.revision)
    if hub.is_commit_hash(settings.revision):
        wanted = settings.revision
    files = " ".join(dataset.info.download_checksums or {})
    read = re.search(r"@([0-9a-f]{40})/", files)
    if read is None or read[1] == wanted:
        return
    if wanted:
        raise DataError(
            f"{settings.path}: need the rows of commit {wanted}, and offline only those of "
            f"commit {read[1]} are available. Connect to the hub, or give data.revision={read[1]}"
        )
    logger.info(f"data: {settings.path} from the cache of `datasets`, commit {read[1]}")
    hub.record_commit(name, settings.revision, read[1])


def _load_from_hub(settings: SourceConfig, split: str) -> Any:
    import datasets

    local = Path(settings.path).expanduser().exists()
    revision = None if local else hub.resolve_dataset(settings.path, settings.revision)
    unreachable = not local and not revision
    revision = revision or settings.revision or None
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        # no commit found: the hub did not answer, so further attempts would only take time
        offline = _hub_offline() if unreachable else nullcontext()
        with _hide_warnings(logging.getLogger("huggingface_hub")), offline:
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
    except Exception as error:  # datasets raises many types for names, splits and broken files
        raise DataError(
            f"{settings.path}: datasets cannot load it (data.name={settings.name or 'none'}, "
            f"data.split={split}): {first_line(error)}"
        ) from error


_SPLITS, _STATE = "dataset_dict.json", "state.json"


def open_saved_dataset(
    settings: SourceConfig, folder: Path, split: Split, default_split: DefaultSplit
) -> DataSource:
    """Open a folder that `save_to_disk` wrote: one data set, or one per split.

    Raises:
        DataError: it has no such split, or `datasets` cannot read it.
    """
    if settings.name:
        raise DataError(
            f"data.name: got {settings.name}, but {folder} was written by save_to_disk and has no "
            "configurations; leave it out"
        )
    chosen = _select_split_folder(folder, split, default_split)
    table = _load_saved(chosen)
    start, end = split.bounds(len(table)) if split.sliced else (0, len(table))
    label = chosen.name if chosen == folder else f"{folder.name}/{chosen.name}"

    def rows() -> Iterator[RawRow]:
        for index in range(start, end):
            yield RawRow(label, index + 1, table[index], size=1)

    files = [chosen / _STATE, *sorted(chosen.glob("*.arrow"))]
    fingerprint = f"{fingerprint_files(files)} {settings.split if split.sliced else ''}"
    return DataSource(settings, (label,), (), lambda: fingerprint, end - start, rows)


def _select_split_folder(folder: Path, split: Split, default_split: DefaultSplit) -> Path:
    """Return the folder of one data set: the folder itself, or the subfolder of the split."""
    if not (folder / _SPLITS).is_file():
        if split.name not in ("", "train"):
            raise DataError(
                f"data.split: {folder} holds one data set and has no split {split.name}; slice its "
                "rows, as in data.split=[:100], or leave it out"
            )
        return folder
    names = sorted(child.name for child in folder.iterdir() if is_saved_dataset(child))
    defaults = ["train"] if default_split == "train" else list(HELD_OUT_SPLITS)
    found = [name for name in ([split.name] if split.name else defaults) if name in names]
    if not found:
        present = ", ".join(names) or "none"
        raise DataError(
            f"{folder}: no split {split.name or default_split}; save_to_disk wrote {present}. "
            f"Try data.split={names[0] if names else 'NAME'}"
        )
    return folder / found[0]


def _load_saved(folder: Path) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # many types, for damaged files and columns of newer versions
        raise DataError(
            f"{folder}: datasets cannot load what save_to_disk wrote ({first_line(error)})"
        ) from error
