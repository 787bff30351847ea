"""Finished runs of the shipped model, made once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_cli import cli

FAST = ["model=tiny", "max_steps=2", "batch_size=4", "lr=1e-2", "train.precision=fp32"]


@pytest.fixture(scope="session")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a run of a stage with some settings, once for each."""
    made: dict[tuple[str, ...], Path] = {}

    def run(stage: str, *settings: str) -> Path:
        key = (stage, *settings)
        if key not in made:
            out = tmp_path_factory.mktemp("runs") / stage
            data = [] if any(word.startswith("data=") for word in settings) else ["data=tiny"]
            assert cli.main([stage, *FAST, *data, *settings, f"output_dir={out}"]) == 0
            made[key] = out
        return made[key]

    return run
