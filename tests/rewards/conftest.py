"""A tiny reward run, made once."""

from pathlib import Path

import pytest

from rlhf_cli import cli
from tests.stages.conftest import FAST


@pytest.fixture(scope="session")
def reward_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished reward run of the shipped model: two steps."""
    out = tmp_path_factory.mktemp("runs") / "reward"
    argv = ["reward", "model=tiny", "data=tiny", "max_steps=2", f"output_dir={out}", *FAST]
    assert cli.main(argv) == 0
    return out


@pytest.fixture(scope="session")
def sft_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished SFT run of the shipped model: one step."""
    out = tmp_path_factory.mktemp("runs") / "sft"
    argv = ["sft", "model=tiny", "data=tiny", "max_steps=1", f"output_dir={out}", *FAST]
    assert cli.main(argv) == 0
    return out
