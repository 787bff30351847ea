"""Trackers that write on this machine: what they stored is what the metrics file has."""

import json
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_cli import cli
from rlhf_cli.train.metrics import read_metrics

SFT = ["sft", "model=tiny", "data=tiny", "max_steps=2", "batch_size=2", "max_length=64"]


def train(out: Path, tracker: str) -> list[float]:
    """Train with a tracker; gives the losses of the metrics file."""
    words = [f"log.trackers=[{tracker}]", f"output_dir={out}", "train.precision=fp32"]
    assert cli.main([*SFT, *words]) == 0
    return [line["loss"] for line in read_metrics(out / "metrics.jsonl") if "loss" in line]


BLOCK, HEADER = 32768, 7


def level_db_records(log: bytes) -> Iterator[bytes]:
    """Records of a log of LevelDB, in which wandb writes, after the 7 bytes of its own head.

    Blocks of 32 KiB, the first shorter by that head; chunks of checksum (4 bytes), length (2) and
    type (1): whole, first, middle, last.
    """
    at, record = 0, b""
    while at + HEADER <= len(log):
        left = BLOCK - (at + HEADER) % BLOCK
        if left < HEADER:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", log, at + 4)
        record += log[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (1, 4):
            yield record
            record = b""


@pytest.mark.filterwarnings("ignore")
def test_wandb_stores_metrics_and_keys_in_the_run_folder(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    losses = train(tmp_path / "run", "wandb")
    [file] = (tmp_path / "run" / "trackers" / "wandb").glob("offline-run-*/*.wandb")
    assert not (tmp_path / "wandb").exists()
    found, keys, run = [], {}, None
    for data in level_db_records(file.read_bytes()[7:]):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for item in record.history.item:
            name = item.key or ".".join(item.nested_key)
            found += [json.loads(item.value_json)] if name == "loss" else []
        for item in [*record.run.config.update, *record.config.update]:
            keys[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        run = record.run if record.run.project else run
    assert found == pytest.approx(losses)
    assert (run.project, run.display_name) == ("rlhf", "run")
    assert keys["train.max_steps"] == 2


@pytest.mark.filterwarnings("ignore")
def test_trackio_stores_metrics_and_keys(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    losses = train(tmp_path / "run", "trackio")
    logged = SQLiteStorage.get_logs("rlhf", "run")
    assert [line["loss"] for line in logged if "loss" in line] == pytest.approx(losses)
    with sqlite3.connect(tmp_path / "trackio" / "rlhf.db") as database:
        texts = [text for (text,) in database.execute("select config from configs")]
    assert json.loads(texts[0])["train.max_steps"] == 2
