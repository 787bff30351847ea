"""Rows that are read as a stage reads them, with the shipped model's tokenizer."""

import copy
from pathlib import Path

import pytest

from rlhf_cli.commands.data.checked_rows import MAX_ROWS, read_checked_data
from rlhf_cli.data.checks.registry import find_all
from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.prompts import PromptEncoder
from rlhf_cli.data.report import DataReport
from rlhf_cli.data.sources.mixture import mix_training_rows, open_sources
from rlhf_cli.data.tokens.record_tokenizer import RecordTokenizer
from rlhf_cli.models.tokenizer import load_pretrained_tokenizer
from rlhf_cli.registry import COMMANDS
from rlhf_cli.resources import shipped_model
from rlhf_cli.stages.inspection import PromptTokenizer, StageRows
from tests.data.toy import write_jsonl


@pytest.fixture(scope="session")
def shipped_tokenizer():
    return load_pretrained_tokenizer(str(shipped_model()))


@pytest.fixture
def tokenizer(shipped_tokenizer):
    """A tokenizer of the test's own, which it can change."""
    return copy.deepcopy(shipped_tokenizer)


@pytest.fixture
def read(tmp_path: Path, shipped_tokenizer):
    """Reads rows as a stage does; other words are keys of `data`, or of the stage in `keys`."""

    def read_rows(*rows, stage="sft", tokenizer=None, keys=None, max_rows=MAX_ROWS, **data):
        path = data.pop("path", None) or write_jsonl(tmp_path / "rows.jsonl", *rows)
        cfg = COMMANDS[stage].config(
            data=DataConfig(path=str(path), **{"eval": "none", **data}), **(keys or {})
        )
        tokenizer = tokenizer or shipped_tokenizer
        mixture = mix_training_rows(open_sources(cfg.data, cfg.data.path, stage, "train"), 0, 0)
        report = DataReport(mixture.files)
        made = RecordTokenizer(tokenizer, cfg.data, report, as_messages=cfg.as_messages)
        if stage == "ppo":
            room = cfg.data.max_length - cfg.sampling.max_new_tokens
            encoder = PromptEncoder(tokenizer, as_message=True)
            made = PromptTokenizer(encoder, room, cfg.data.truncation, report)
        opened = StageRows(stage, cfg, mixture, tokenizer, (), report, made)
        return read_checked_data(opened, max_rows)

    return read_rows


@pytest.fixture
def find(read):
    """Runs all checks on rows; code -> its findings."""

    def find_in(*rows, **words):
        found = {}
        for finding in find_all(read(*rows, **words)):
            found.setdefault(finding.code, finding)
        return found

    return find_in
