"""Repositories on the Hugging Face hub: resolve an id to one commit, and fetch its files.

Within a command, an id and a revision mean one commit, resolved at first use. A run records its
commits in its manifest, and a resumed run starts with those.
"""

import json
import os.path
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path

from rlhf_cli.errors import DataError, ModelError, first_line

SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py"]
"""Patterns of all files of a model repository but its weights."""

SUBFOLDERS = ["*/*.json", "*/*.txt", "*/*.model"]
"""Patterns that are not fetched: intermediate checkpoints, exports to other formats."""

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

NOT_FOUND_ADVICE = (
    "It is no folder here, so it was taken for a hub id. Check the name and the connection, or "
    "give a folder; with HF_HUB_OFFLINE=1 only cached files are used"
)

_COMMIT = re.compile(r"[0-9a-f]{40}")

_commits: dict[str, str] = {}
"""`ID@REVISION` -> commit, resolved by this command."""


def set_commits(commits: Mapping[str, str]) -> None:
    """Set the known commits; called at the start of a command and of each rank.

    Args:
        commits: `ID@REVISION` -> commit, of a resumed run; else empty.
    """
    _commits.clear()
    _commits.update(commits)


def commits() -> dict[str, str]:
    """Return `ID@REVISION` -> commit for all ids that this command has resolved."""
    return dict(_commits)


def resolved_commit(hub_id: str, revision: str = "") -> str:
    """Return the commit that this command resolved an id to; empty if it has not."""
    return _commits.get(_name(hub_id, revision), "")


def record_commit(hub_id: str, revision: str, commit: str) -> None:
    """Record the commit of an id and revision for the rest of the command."""
    _commits[_name(hub_id, revision)] = commit


def is_commit_hash(revision: str) -> bool:
    """Whether a revision is a full commit hash, not a branch or tag."""
    return bool(_COMMIT.fullmatch(revision))


def _name(hub_id: str, revision: str) -> str:
    return f"{hub_id}@{revision or 'main'}"


def cached_snapshot(hub_id: str, revision: str = "") -> Path | None:
    """Find the cached folder of a model's files; fetches nothing."""
    from huggingface_hub import constants

    cached = os.path.join(constants.HF_HUB_CACHE, f"models--{hub_id.replace('/', '--')}")
    commit = resolved_commit(hub_id, revision) or _read_reference(cached, revision) or revision
    folder = os.path.join(cached, "snapshots", commit)
    return Path(folder) if is_commit_hash(commit) and os.path.isdir(folder) else None


def _read_reference(cached: str, revision: str) -> str:
    """Read the commit of a branch or tag when it was last fetched; empty if it never was."""
    file = os.path.join(cached, "refs", revision or "main")
    return Path(file).read_text(encoding="utf-8").strip() if os.path.isfile(file) else ""


def fetch_model(key: str, hub_id: str, revision: str = "", *, weights: bool = False) -> Path:
    """Fetch a model's files at one commit; the name of the returned folder is the commit.

    Args:
        key: config key that named the id, for messages.
        hub_id: `name` or `organization/name`.
        revision: branch, tag or commit; empty is the default branch.
        weights: also fetch the weights (safetensors only).

    Raises:
        ModelError: the hub cannot be reached, or has no such revision or weights.
    """
    try:
        folder = _fetch(hub_id, resolved_commit(hub_id, revision) or revision)
        record_commit(hub_id, revision, folder.name)
        if weights:
            _fetch_weights(hub_id, folder)
    except Exception as error:  # huggingface_hub has many error classes
        reason = textwrap.shorten(first_line(error), 300).rstrip(".")
        at = f" at revision {revision}" if revision else ""
        raise ModelError(
            f"{key}: cannot load {hub_id}{at} ({reason}). {NOT_FOUND_ADVICE}"
        ) from error
    return folder


def dataset_key(hub_id: str) -> str:
    """Key of a dataset among the commits: a model may have the same id."""
    return f"datasets/{hub_id}"


def resolve_dataset(hub_id: str, revision: str = "") -> str:
    """Resolve a dataset to a commit; empty if the hub cannot be reached.

    Raises:
        DataError: the dataset or its revision does not exist.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    known = resolved_commit(dataset_key(hub_id), revision)
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
    except Exception:  # offline: the cache of `datasets` is tried later
        return ""
    record_commit(dataset_key(hub_id), revision, commit)
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
    """Fetch the safetensors of an adapter or a whole model.

    Raises:
        FileNotFoundError: the repository has none.
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
