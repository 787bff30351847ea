"""What every test runs under."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # see rlhf_cli/cores.py; before torch is loaded

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

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


@pytest.fixture(autouse=True)
def _short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fixed prompts of `log.sample_prompts` get short answers: most tests do not read them."""
    from rlhf_cli.stages import fixed_samples

    short = replace(fixed_samples.GREEDY, max_new_tokens=4)
    monkeypatch.setattr(fixed_samples, "GREEDY", short)


@pytest.fixture(autouse=True)
def _stand_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With FAKE_CUDA=1 in the environment, tests run on a stand-in for a GPU.

    `FAKE_CUDA=1 pytest tests/stages` finds tests, and what they test, that would fail on a GPU
    machine.
    """
    if not os.environ.get("FAKE_CUDA") or "fake_cuda" in request.node.nodeid:
        yield
        return
    from rlhf_cli.train import loop
    from tests.fake_cuda import fake_cuda

    monkeypatch.setattr(loop, "measure_peak", lambda device, compute: 1e12)
    with fake_cuda(monkeypatch):
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
