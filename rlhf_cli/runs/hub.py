"""Repositories of the Hugging Face hub: which commit of one is used, and the folder of its files.

Within a command, an id and a revision always mean one commit: it is resolved when it is first asked
for. A run writes its commits into its manifest, and a run that is continued begins with those.
"""

import json
import os.path
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path

from rlhf_cli.errors import DataError, ModelError, first_line

SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py"]
"""Of a model's repository, all but its weights."""

SUBFOLDERS = ["*/*.json", "*/*.txt", "*/*.model"]
"""Not fetched: intermediate checkpoints, and exports to other formats."""

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

NOT_HERE = (
    "It is no folder here, so it was taken for a hub id. Check the name and the connection, or "
    "give a folder; with HF_HUB_OFFLINE=1 only what was fetched before is used"
)

_COMMIT = re.compile(r"[0-9a-f]{40}")

_commits: dict[str, str] = {}
"""`ID@REVISION` -> commit, of this command."""


def begin(commits: Mapping[str, str]) -> None:
    """Start a command, or the part of a rank in it.

    Args:
        commits: `ID@REVISION` -> commit, of a run that is continued; else empty.
    """
    _commits.clear()
    _commits.update(commits)


def commits() -> dict[str, str]:
    """`ID@REVISION` -> commit of all that this command has resolved."""
    return dict(_commits)


def commit_of(hub_id: str, revision: str = "") -> str:
    """The commit that this command has resolved an id to; empty where it has not."""
    return _commits.get(_name(hub_id, revision), "")


def keep_commit(hub_id: str, revision: str, commit: str) -> None:
    """Let an id and a revision mean a commit from here on."""
    _commits[_name(hub_id, revision)] = commit


def is_commit(revision: str) -> bool:
    """Whether a revision is a whole commit hash, not a branch or tag."""
    return bool(_COMMIT.fullmatch(revision))


def _name(hub_id: str, revision: str) -> str:
    return f"{hub_id}@{revision or 'main'}"


def cached_snapshot(hub_id: str, revision: str = "") -> Path | None:
    """The folder of a model's files as they were fetched before; nothing is fetched here."""
    from huggingface_hub import constants

    cached = os.path.join(constants.HF_HUB_CACHE, f"models--{hub_id.replace('/', '--')}")
    commit = commit_of(hub_id, revision) or _read_reference(cached, revision) or revision
    folder = os.path.join(cached, "snapshots", commit)
    return Path(folder) if is_commit(commit) and os.path.isdir(folder) else None


def _read_reference(cached: str, revision: str) -> str:
    """The commit of a branch or tag when it was last fetched; empty where it never was."""
    file = os.path.join(cached, "refs", revision or "main")
    return Path(file).read_text(encoding="utf-8").strip() if os.path.isfile(file) else ""


def fetch(key: str, hub_id: str, revision: str = "", *, weights: bool = False) -> Path:
    """The folder of a model's files at one commit; the folder's name is the commit.

    Args:
        key: that named the id, for messages.
        hub_id: `name` or `organisation/name`.
        revision: branch, tag or commit; empty is the default branch.
        weights: fetch the weights too, those of safetensors.

    Raises:
        ModelError: it cannot be reached, or has no such revision or weights.
    """
    try:
        folder = _fetch(hub_id, commit_of(hub_id, revision) or revision)
        keep_commit(hub_id, revision, folder.name)
        if weights:
            _fetch_weights(hub_id, folder)
    except Exception as error:  # the hub's library has a kind for each of many reasons
        reason = textwrap.shorten(first_line(error), 300).rstrip(".")
        at = f" at revision {revision}" if revision else ""
        raise ModelError(f"{key}: cannot load {hub_id}{at} ({reason}). {NOT_HERE}") from error
    return folder


def rows_id(hub_id: str) -> str:
    """What a data set is called here: its id may be a model's too."""
    return f"datasets/{hub_id}"


def resolve_rows(hub_id: str, revision: str = "") -> str:
    """The commit of a data set; empty where the hub cannot be reached.

    Raises:
        DataError: the data set, or its revision, is not there.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    known = commit_of(rows_id(hub_id), revision)
    if known:
        return known
    try:
        commit = HfApi().dataset_info(hub_id, revision=revision or None).sha or ""
    except RevisionNotFoundError:
        raise DataError(
            f"data.revision: got {revision}, and {hub_id} has no such branch, tag or commit"
        ) from None
    except RepositoryNotFoundError:
        raise DataError(f"{hub_id}: the hub has no such data set, or it needs a login") from None
    except Exception:  # no connection, or none is allowed: the cache of `datasets` is tried later
        return ""
    keep_commit(rows_id(hub_id), revision, commit)
    return commit


def _fetch(hub_id: str, revision: str, files: list[str] | None = None) -> Path:
    from huggingface_hub import snapshot_download

    ignored = SUBFOLDERS if files is None else None
    allowed = files or SMALL_FILES
    return Path(
        snapshot_download(
            hub_id, revision=revision or None, allow_patterns=allowed, ignore_patterns=ignored
        )
    )


def _fetch_weights(hub_id: str, folder: Path) -> None:
    """Fetch the safetensors of an adapter, or of a whole model.

    Raises:
        FileNotFoundError: there are none.
    """
    names = _weight_files(folder)
    if all((folder / name).is_file() for name in names):
        return
    _fetch(hub_id, folder.name, names)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"no {missing[0]} at commit {folder.name}; need weights as safetensors (a pickle, "
            "*.bin, is not read: it can run any code)."
        )


def _weight_files(folder: Path) -> list[str]:
    if (folder / ADAPTER_CONFIG).is_file():
        return [ADAPTER_WEIGHTS]
    if (folder / INDEX).is_file():
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return sorted({*weight_map.values()})
    return [WEIGHTS]
