"""What every test runs under."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import pytest

from tests.helpers import DATA


@pytest.fixture
def real_data() -> Path:
    """The folder of real data; skips where there is none."""
    if not DATA.is_dir():
        pytest.skip("no real data: RLHF_DATA names no folder")
    return DATA


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests neither read nor fill the user's cache."""
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
