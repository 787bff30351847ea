"""A tiny model folder and a run of it, made once."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_cli import cli

FAST = ["train.precision=fp32", "batch_size=4", "lr=1e-2"]


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., str]:
    """Writes a `.jsonl` file and gives its path."""

    def write(*rows: object, name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture(scope="session")
def sft_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished SFT run of the shipped model: three steps."""
    out = tmp_path_factory.mktemp("runs") / "sft"
    argv = ["sft", "model=tiny", "data=tiny", "max_steps=3", f"output_dir={out}", *FAST]
    assert cli.main(argv) == 0
    return out
