"""Run folders of which reports are made, written by hand."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

CONFIG = "stage: dpo\nmodel:\n  path: tiny\nbeta: 0.1\ntrain:\n  lr: 1.0e-4\n"

LINES = [{"step": 0, "eval/loss": 0.7}] + [
    {"step": k, "loss": 0.7 - 0.02 * k, "lr": 1e-4, "grad_norm": 1.0 + k % 3} for k in range(1, 13)
]


@pytest.fixture
def a_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run folder."""

    def write(
        name: str = "run",
        lines: Iterable[dict[str, Any]] = LINES,
        config: str = CONFIG,
        samples: Iterable[dict[str, Any]] = (),
        fixed: Iterable[dict[str, Any]] = (),
        **manifest: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(config, encoding="utf-8")
        for file, rows in (
            ("metrics.jsonl", lines),
            ("samples.jsonl", samples),
            ("fixed_samples.jsonl", fixed),
        ):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / file).write_text(text, encoding="utf-8")
        facts = {"status": "complete", "command": "dpo", **manifest}
        (folder / "manifest.json").write_text(json.dumps(facts))
        return folder

    return write
