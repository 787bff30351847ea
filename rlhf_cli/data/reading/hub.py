"""Data sets of the hub, and local folders that are laid out like one, through `datasets`."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rlhf_cli.console import logger
from rlhf_cli.data.config import Source
from rlhf_cli.data.reading.files import holds_rows
from rlhf_cli.data.reading.raw import RawRow, RowSource, Side
from rlhf_cli.data.reading.splits import Split
from rlhf_cli.errors import DataError, first_line
from rlhf_cli.runs import hub
from rlhf_cli.runs.inputs import card_lists_configs


def is_hub_folder(path: Path, settings: Source) -> bool:
    """Whether a local folder is read as `datasets` reads it.

    So it is where `data.name` chooses a configuration, where its card (README.md) lists some, and
    where its rows lie in folders below it.
    """
    if not path.is_dir() or settings.data_dir:
        return False
    own = any(map(holds_rows, path.iterdir()))
    below = not own and any(map(holds_rows, path.glob("*/*")))
    return bool(settings.name or card_lists_configs(path) or below)


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
    name = hub.dataset_key(settings.path)
    wanted = hub.resolved_commit(name, settings.revision)
    if hub.is_commit_hash(settings.revision):
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
    logger.info(f"data: {settings.path} from the cache of `datasets`, commit {read[1]}")
    hub.record_commit(name, settings.revision, read[1])


def _load(settings: Source, split: str) -> Any:
    import datasets

    local = Path(settings.path).expanduser().exists()
    revision = None if local else hub.resolve_dataset(settings.path, settings.revision)
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
