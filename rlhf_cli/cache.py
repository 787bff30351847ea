"""Arrays on disk, found again by what they were made from."""

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

from rlhf_cli.context import say
from rlhf_cli.resources import cache_folder

ENTRY = "entry.json"


DEFAULT_GB = "20"


RECENT_SECONDS = 3600.0
"""An entry that was used since is kept: another run may be about to open it in its ranks."""


_own: set[Path] = set()
"""The entries that this process has stored or loaded; they are kept as long as it runs."""


_told = threading.Event()
"""Set once it was said that the entries in use are larger than the limit."""


Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Entry:
    """What is stored: arrays by name, and JSON values beside them."""

    arrays: Arrays
    facts: dict[str, Any]


def tokenizer_state(tokenizer: Any) -> list[str]:
    """What decides the tokens of a text or chat."""
    rules = tokenizer.backend_tokenizer
    rules.no_truncation()  # set anew by each call; not a part of the tokenizer
    rules.no_padding()
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return [rules.to_str(), json.dumps(special, sort_keys=True), str(tokenizer.chat_template)]


def load_entry(key: str, shelf: str = "tokens") -> Entry | None:
    """The entry of that name, its arrays mapped from disk; none if missing or damaged.

    Args:
        key: names it by all that its content depends on.
        shelf: the part of the cache for entries of its kind.
    """
    folder = cache_folder() / shelf / key
    if not folder.is_dir():
        return None
    try:
        entry = _read(folder)
        _own.add(folder)
        (folder / ENTRY).touch()  # its time is that of the last use
        return entry
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        say(f"cache: {folder} is damaged ({error}); making it anew")
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _read(folder: Path) -> Entry:
    stored = json.loads((folder / ENTRY).read_text(encoding="utf-8"))
    arrays = {}
    for name, expected in stored["crc32"].items():
        array = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        if _checksum(array) != expected:
            raise ValueError(f"{name}.npy has other content than was written")
        arrays[name] = array
    return Entry(arrays, stored["facts"])


def store_entry(key: str, entry: Entry, shelf: str = "tokens") -> None:
    """Write an entry aside, then rename it into place; a run goes on if that fails."""
    folder = cache_folder() / shelf / key
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=folder.parent, prefix=f".{key}.", ignore_cleanup_errors=True
        ) as parent:
            aside = Path(parent) / key
            aside.mkdir()
            _write(aside, entry)
            aside.rename(folder)
        _own.add(folder)
        prune(folder.parent)
    except OSError as error:
        if not folder.is_dir():  # else another process was faster
            say(f"cache: not written to {folder}: {error.strerror or error}")


def prune(shelf: Path) -> None:
    """Remove the entries that were not used for longest, until `$RLHF_CACHE_GB` hold the rest.

    Those of this process, and those used within `RECENT_SECONDS`, stay in any case.
    """
    most = _most_bytes()
    last_use = {f: (f / ENTRY).stat().st_mtime for f in shelf.iterdir() if (f / ENTRY).is_file()}
    recent = time.time() - RECENT_SECONDS
    kept = {folder for folder, used in last_use.items() if folder in _own or used > recent}
    total = sum(_size(folder) for folder in kept)
    if total > most and not _told.is_set():
        _told.set()
        say(
            f"cache: the entries in use take {total / 1e9:.3g} GB of {shelf}, more than the limit "
            f"(RLHF_CACHE_GB={most / 1e9:g}); they stay for now"
        )
    for folder in sorted(last_use.keys() - kept, key=lambda folder: -last_use[folder]):
        total += _size(folder)
        if total > most:
            shutil.rmtree(folder, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _most_bytes() -> float:
    given = os.environ.get("RLHF_CACHE_GB") or DEFAULT_GB
    try:
        return float(given) * 1e9
    except ValueError:
        say(f"cache: RLHF_CACHE_GB={given} is no number; taking {DEFAULT_GB}")
        return float(DEFAULT_GB) * 1e9


def _write(folder: Path, entry: Entry) -> None:
    for name, array in entry.arrays.items():
        np.save(folder / f"{name}.npy", array)
    checksums = {name: _checksum(array) for name, array in entry.arrays.items()}
    stored = json.dumps({"crc32": checksums, "facts": entry.facts})
    (folder / ENTRY).write_text(stored, encoding="utf-8")


def _checksum(array: NDArray[Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data.cast("B"))
