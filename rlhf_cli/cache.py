"""On-disk cache of arrays, with the least recently used entries removed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.console import logger
from rlhf_cli.resources import cache_folder

ENTRY = "entry.json"
DEFAULT_GB = "20"

RECENT_SECONDS = 3600.0
"""Entries used within this time are kept: another run may be about to open them in its ranks."""

_in_use: set[Path] = set()
"""Entries that this process has stored or loaded, which are kept while it runs."""

_limit_reported = threading.Event()
"""Set once it was reported that the entries in use exceed the limit."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class CacheEntry:
    """Arrays by name, and JSON values stored with them."""

    arrays: Arrays
    facts: dict[str, Any]


def tokenizer_state(tokenizer: Any) -> list[str]:
    """Return all that decides the tokens of a text or chat, as text for cache keys."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # set by each call; not a part of the tokenizer
    backend.no_padding()
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return [backend.to_str(), json.dumps(special, sort_keys=True), str(tokenizer.chat_template)]


def load_entry(key: str, kind: str = "tokens", *, verify: bool = True) -> CacheEntry | None:
    """Load an entry, its arrays mapped from disk; None if it is missing or damaged.

    Args:
        key: hash of all that the content depends on.
        kind: subfolder of the cache for this kind of entry.
        verify: read all arrays and compare their checksums. Without it only the parts that are used
            are read, so that ranks hold the pages of their own rows.
    """
    folder = cache_folder() / kind / key
    if not folder.is_dir():
        return None
    try:
        entry = _read(folder, verify=verify)
        _in_use.add(folder)
        (folder / ENTRY).touch()  # its modification time is that of the last use
        return entry
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        logger.info(f"cache: {folder} is damaged ({error}); making it anew")
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _read(folder: Path, *, verify: bool) -> CacheEntry:
    stored = json.loads((folder / ENTRY).read_text(encoding="utf-8"))
    arrays = {}
    for name, expected in stored["crc32"].items():
        array = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        if verify and _checksum(array) != expected:
            raise ValueError(f"{name}.npy has other content than was written")
        arrays[name] = array
    return CacheEntry(arrays, stored["facts"])


def store_entry(key: str, entry: CacheEntry, kind: str = "tokens") -> None:
    """Write an entry to a temporary folder and rename it; errors are reported, not raised."""
    folder = cache_folder() / kind / key
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=folder.parent, prefix=f".{key}.", ignore_cleanup_errors=True
        ) as parent:
            temporary = Path(parent) / key
            temporary.mkdir()
            _write(temporary, entry)
            temporary.rename(folder)
        _in_use.add(folder)
        prune(folder.parent)
    except OSError as error:
        if not folder.is_dir():  # else another process was faster
            logger.info(f"cache: not written to {folder}: {error.strerror or error}")


def prune(folder: Path) -> None:
    """Remove the least recently used entries until the rest fits into `$RLHF_CACHE_GB`.

    Entries of this process, and those used within `RECENT_SECONDS`, are kept in any case.

    Args:
        folder: folder of one kind of entries.
    """
    limit = _limit_bytes()
    last_use = {f: (f / ENTRY).stat().st_mtime for f in folder.iterdir() if (f / ENTRY).is_file()}
    recent = time.time() - RECENT_SECONDS
    kept = {entry for entry, used in last_use.items() if entry in _in_use or used > recent}
    total = sum(_size(entry) for entry in kept)
    if total > limit and not _limit_reported.is_set():
        _limit_reported.set()
        logger.info(
            f"cache: the entries in use take {total / 1e9:.3g} GB of {folder}, more than the limit "
            f"(RLHF_CACHE_GB={limit / 1e9:g}); they stay for now"
        )
    for entry in sorted(last_use.keys() - kept, key=lambda entry: -last_use[entry]):
        total += _size(entry)
        if total > limit:
            shutil.rmtree(entry, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _limit_bytes() -> float:
    given = os.environ.get("RLHF_CACHE_GB") or DEFAULT_GB
    try:
        return float(given) * 1e9
    except ValueError:
        logger.info(f"cache: RLHF_CACHE_GB={given} is no number; taking {DEFAULT_GB}")
        return float(DEFAULT_GB) * 1e9


def _write(folder: Path, entry: CacheEntry) -> None:
    for name, array in entry.arrays.items():
        np.save(folder / f"{name}.npy", array)
    checksums = {name: _checksum(array) for name, array in entry.arrays.items()}
    stored = json.dumps({"crc32": checksums, "facts": entry.facts})
    (folder / ENTRY).write_text(stored, encoding="utf-8")


def _checksum(array: NDArray[Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data.cast("B"))
