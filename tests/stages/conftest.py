"""A tiny model folder and a run of it, made once."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rlhf_cli import cli
from rlhf_cli.resources import shipped_model
from tests.helpers import tiny_llama

FAST = ["train.precision=fp32", "batch_size=4", "lr=1e-2"]


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., str]:
    """Writes a `.jsonl` file and gives its path."""

    def write(*rows: object, name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Runs a command in an empty folder; gives its exit code and its error lines."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> tuple[int, str]:
        code = cli.main(list(argv))
        shown = capsys.readouterr().err
        assert "Traceback" not in shown
        lines = [line for line in shown.splitlines() if line.startswith("error: ")]
        return code, "\n".join(line.removeprefix("error: ") for line in lines)

    return run


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random weights of two layers, and the shipped tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "small"
    tokenizer = AutoTokenizer.from_pretrained(shipped_model("tiny"))
    tiny_llama(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sft_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished SFT run of the shipped model: three steps."""
    out = tmp_path_factory.mktemp("runs") / "sft"
    argv = ["sft", "model=tiny", "data=tiny", "max_steps=3", f"output_dir={out}", *FAST]
    assert cli.main(argv) == 0
    return out
