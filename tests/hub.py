"""A hub without a network: repositories as they lie in the cache of `huggingface_hub`."""

import shutil
from pathlib import Path

import pytest

FIRST, SECOND = "1" * 40, "2" * 40


class Hub:
    """A cache folder that holds all there is on the hub."""

    def __init__(self, cache: Path, patch: pytest.MonkeyPatch) -> None:
        self.cache = cache
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))

    def publish(self, hub_id: str, folder: Path, commit: str, *branches: str) -> Path:
        """Make a commit of a model from a folder, and let branches (`main` too) point at it."""
        repository = self.cache / f"models--{hub_id.replace('/', '--')}"
        snapshot = repository / "snapshots" / commit
        shutil.copytree(folder, snapshot)
        (repository / "refs").mkdir(exist_ok=True)
        for branch in ("main", *branches):
            (repository / "refs" / branch).write_text(commit)
        return snapshot
