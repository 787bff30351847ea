"""Two real processes beside one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf_cli import cli
from rlhf_cli.context import RunContext
from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.records.types import TextRecord
from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.errors import DataError
from rlhf_cli.launch import launcher
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.preflight.models import positions
from rlhf_cli.runs.folder import list_checkpoints
from rlhf_cli.runs.run_files import TOKENIZER
from rlhf_cli.stages.prepare_data import load_rows, prepare_rows
from rlhf_cli.stages.pretrain.config import PretrainConfig
from rlhf_cli.train.metrics import read_metrics
from tests.helpers import last_of_each, lines_of
from tests.stages.test_stages import stop_after

STEPS = 20


def words(out, *changes, processes=2, data="tiny"):
    """With 5 rows and 4 a step, each epoch ends with a step of one row: rank 1 gets none."""
    return last_of_each(
        "sft",
        "model=tiny",
        f"data={data}",
        "data.eval=tiny",
        "train.precision=fp32",
        "batch_size=4",
        "lr=1e-3",
        f"max_steps={STEPS}",
        "train.save_steps=10",
        f"launch.processes={processes}",
        f"output_dir={out}",
        *changes,
    )


def torchrun(argv):
    options = ["--standalone", "--nproc-per-node=2", "-m", "rlhf_cli"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def when_logged(out, step, act):
    """Do something once a step stands in the metrics."""

    def wait():
        file = out / "metrics.jsonl"
        while not (file.exists() and len(file.read_text().splitlines()) > step):
            time.sleep(0.005)
        act()

    threading.Thread(target=wait, daemon=True).start()


def weights(out):
    return load_file(out / "checkpoints" / f"step-{STEPS:06d}" / "weights.safetensors")


@pytest.fixture(scope="module", autouse=True)
def _module_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    lines = [{"prompt": "How deep is it?", "completion": " Deep, " * (1 + 3 * i)} for i in range(5)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory, rows):
    """The same run in one process and in two."""
    folder = tmp_path_factory.mktemp("runs")
    for processes in (1, 2):
        assert cli.main(words(folder / str(processes), processes=processes, data=rows)) == 0
    return folder / "1", folder / "2"


def test_two_processes_are_one(runs):
    """20 steps in fp32: loss to 1e-5, gradient norm to 1e-4; on average far closer."""
    one, two = (lines_of(out) for out in runs)
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for name, most, mean in (("loss", 1e-5, 2e-6), ("grad_norm", 1e-4, 2e-5)):
        differences = [abs(a[name] - b[name]) for a, b in zip(one, two, strict=True) if name in a]
        assert len(differences) == STEPS
        assert max(differences) < most
        assert sum(differences) / STEPS < mean
    assert [line["lr"] for line in one[1:]] == [line["lr"] for line in two[1:]]


def test_their_evaluation_is_that_of_one(runs):
    one, two = (json.loads((out / "manifest.json").read_text()) for out in runs)
    for when in ("before", "after"):
        assert two[when] == pytest.approx(one[when], rel=1e-5)
    assert two["before"]["loss"] == pytest.approx(one["before"]["loss"], rel=1e-12)


def test_their_weights_are_those_of_one(runs):
    """Adam divides rounding by a small second moment, so not to the last bit."""
    one, two = map(weights, runs)
    difference = torch.cat([(one[name] - two[name]).abs().flatten() for name in one])
    assert difference.max() < 1e-3
    assert difference.mean() < 1e-6


def test_the_manifest_counts_all_of_them(runs):
    manifest = json.loads((runs[1] / "manifest.json").read_text())
    by_rank = manifest["peak_memory_bytes_by_rank"]
    assert manifest["processes"] == len(by_rank) == 2
    assert manifest["peak_memory_bytes"] == sum(by_rank)
    assert manifest["machinery"]["processes"] == 2


def test_only_rank_0_speaks_and_the_other_has_a_log(runs):
    assert "step 1/20" in (runs[1] / "ranks" / "rank-1.log").read_text()
    assert not (runs[0] / "ranks").exists()


def test_rows_of_both_ranks_are_named_when_the_loss_is_not_finite(tmp_path, rows, capfd):
    """After a step with this rate no weight is finite, and no row of the next."""
    assert cli.main(words(tmp_path / "run", "lr=1e38", data=rows, processes=2)) == 5
    shown = capfd.readouterr().err
    assert "stopped before the optimizer step" in shown
    assert len(re.findall(r"error:   .*rows.jsonl:\d: loss is not finite", shown)) in (1, 4)
    assert "Traceback" not in shown


def continued(runs, out, rows, *, before, after):
    """A run that takes its last ten steps with another number of processes."""
    shutil.copytree(runs[before - 1], out)
    shutil.rmtree(out / "model")
    shutil.rmtree(out / "checkpoints" / f"step-{STEPS:06d}")
    change = {"status": "interrupted"}
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, **change}))
    assert cli.main(words(out, processes=after, data=rows)) == 0
    return out


def require_one_trajectory(out, unbroken):
    """20 steps in fp32: the bounds of two processes beside one."""
    found, expected = lines_of(out), lines_of(unbroken)
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for name, most in (("loss", 1e-5), ("grad_norm", 1e-4), ("eval/loss", 1e-5)):
        pairs = [(a[name], b[name]) for a, b in zip(found, expected, strict=True) if name in b]
        assert pairs
        assert max(abs(a - b) for a, b in pairs) < most
    one, other = weights(unbroken), weights(out)
    difference = torch.cat([(one[name] - other[name]).abs().flatten() for name in one])
    assert difference.max() < 1e-3
    assert difference.mean() < 1e-6


def test_a_run_of_two_processes_is_continued_by_one(runs, rows, tmp_path, capfd):
    """Its trajectory is that of an unbroken run; the same rows in the same steps."""
    out = continued(runs, tmp_path / "run", rows, before=2, after=1)
    shown = capfd.readouterr().err
    assert "continuing a run of 2 processes on 1 process: the same steps" in shown
    assert "continuing from step-000010" in shown
    require_one_trajectory(out, runs[0])
    assert json.loads((out / "manifest.json").read_text())["machinery"]["processes"] == 1


@pytest.mark.slow
def test_a_run_of_one_process_is_continued_by_two(runs, rows, tmp_path, capfd):
    out = continued(runs, tmp_path / "run", rows, before=1, after=2)
    assert "continuing a run of 1 process on 2 processes: " in capfd.readouterr().err
    require_one_trajectory(out, runs[1])


@pytest.mark.slow
def test_two_processes_that_save_in_the_background_write_the_same(runs, rows, tmp_path):
    out = tmp_path / "run"
    assert cli.main(words(out, "train.async_save=true", data=rows)) == 0
    for step in (10, STEPS):
        name = Path("checkpoints", f"step-{step:06d}")
        assert {p.name for p in (out / name).iterdir()} == {
            p.name for p in (runs[1] / name).iterdir()
        }
        for file in ("weights.safetensors", "optimizer.safetensors", "rng.safetensors"):
            assert (out / name / file).read_bytes() == (runs[1] / name / file).read_bytes()


@pytest.mark.slow
def test_the_signal_of_slurm_writes_a_checkpoint(rows, tmp_path, capfd):
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)  # as the console script has
    out = tmp_path / "run"
    when_logged(out, 1, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    try:
        assert cli.main(words(out, data=rows)) == 130
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert capfd.readouterr().err.splitlines()[-1].startswith("error: SIGUSR1 after step")
    assert len(list((out / "checkpoints").iterdir())) == 1


@pytest.mark.slow
def test_a_signal_writes_a_checkpoint_and_torchrun_goes_on(runs, rows, tmp_path, capfd):
    """Bitwise the unbroken run, which our own launcher started."""
    out = tmp_path / "run"
    when_logged(out, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert cli.main(words(out, data=rows)) == 130
    assert capfd.readouterr().err.splitlines()[-1].startswith("error: SIGTERM after step")
    [checkpoint] = (out / "checkpoints").iterdir()
    assert json.loads((out / "manifest.json").read_text())["status"] == "interrupted"
    again = torchrun(words(out, data=rows))
    assert again.returncode == 0, again.stderr
    assert again.stderr.count(f"continuing from {checkpoint.name}") == 1
    assert lines_of(out) == lines_of(runs[1])
    unbroken, continued = weights(runs[1]), weights(out)
    assert all(torch.equal(unbroken[name], continued[name]) for name in unbroken)


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_which_one_process_continues(rows, tmp_path, monkeypatch, capfd):
    started = []
    real = launcher._start
    monkeypatch.setattr(launcher, "_start", lambda *a: started.append(real(*a)) or started[-1])
    out = tmp_path / "run"
    when_logged(out, 2, lambda: os.kill(started[1].pid, signal.SIGKILL))
    began = time.monotonic()
    assert cli.main(words(out, "train.save_steps=1", "max_steps=2000", data=rows)) == 1
    assert time.monotonic() - began < 60
    shown = capfd.readouterr().err
    assert "error: rank 1 was killed by SIGKILL" in shown
    assert "Traceback" not in shown
    assert all(process.poll() is not None for process in started)
    last = list_checkpoints(out)[-1]
    stop_after(monkeypatch, 3 + int(last.name.removeprefix("step-")))
    argv = words(out, "train.save_steps=1", "max_steps=2000", data=rows, processes=1)
    assert cli.main(argv) == 130
    shown = capfd.readouterr().err
    assert "continuing a run of 2 processes on 1 process: " in shown
    assert f"continuing from {last.name}" in shown
    steps = [line["step"] for line in read_metrics(out / "metrics.jsonl")]
    assert steps == sorted({*steps})


@pytest.fixture
def scratch(tmp_path):
    """A run that trains its own tokenizer, prepared; gives its configuration and folder."""
    text = tmp_path / "plays.txt"
    text.write_text("To be, or not to be, that is the question.\n" * 50)
    cfg = PretrainConfig(
        model=ModelConfig(init="scratch", tokenizer_vocab_size=300),
        data=DataConfig(path=str(text), max_length=64),
    )
    out = tmp_path / "run"
    out.mkdir()
    prepare_rows(cfg, out, "pretrain", (TextRecord,))
    return cfg, RunContext(torch.device("cpu"), torch.float32, 0, out, Ranks(1, 2))


def test_ranks_take_the_tokenizer_and_tokens_that_were_prepared(scratch, capfd):
    cfg, ctx = scratch
    opened = load_rows(cfg, ctx, "pretrain", (TextRecord,))
    tokenizer, examples = opened.tokenizer, opened.train
    assert len(tokenizer) <= 300
    assert "To be, or not to be" in tokenizer.decode(examples.tokens[:20].tolist())
    assert opened.held_out is None
    shown = capfd.readouterr().err
    assert "trained" not in shown
    assert "tokenized" not in shown


def test_a_lowered_max_length_is_said_once_for_several_processes(scratch, capfd):
    cfg, ctx = scratch
    cfg = replace(cfg, model=replace(cfg.model, path="tiny", init="pretrained"))
    cfg = replace(cfg, data=replace(cfg.data, max_length=positions(cfg.model)))
    line = "data.max_length: 512, the model's positions\n"
    capfd.readouterr()
    prepare_rows(cfg, ctx.out, "pretrain", (TextRecord,))
    assert capfd.readouterr().err.count(line) == 1
    load_rows(cfg, ctx, "pretrain", (TextRecord,))
    assert line not in capfd.readouterr().err


def test_ranks_tokenize_nothing_themselves(scratch, monkeypatch, tmp_path):
    cfg, ctx = scratch
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match=r"plays.txt: its tokens are not in the cache .*elsewhere"):
        load_rows(cfg, ctx, "pretrain", (TextRecord,))


def test_another_machine_tokenizes_with_the_tokenizer_that_rank_0_trained(
    scratch, monkeypatch, tmp_path, capfd
):
    cfg, ctx = scratch
    trained = (ctx.out / TOKENIZER / "tokenizer.json").read_bytes()
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "of-the-other-machine"))
    monkeypatch.setenv("RANK", "8")
    monkeypatch.setenv("WORLD_SIZE", "16")
    capfd.readouterr()
    prepare_rows(cfg, ctx.out, "pretrain", (TextRecord,))
    assert "tokenizer: trained" not in capfd.readouterr().err
    assert (ctx.out / TOKENIZER / "tokenizer.json").read_bytes() == trained
    assert load_rows(cfg, ctx, "pretrain", (TextRecord,)).train.tokens.size


def test_a_rank_without_a_world_trains_the_tokenizer(scratch, monkeypatch):
    cfg, ctx = scratch
    shutil.rmtree(ctx.out / TOKENIZER)
    monkeypatch.setenv("RANK", "3")
    prepare_rows(cfg, ctx.out, "pretrain", (TextRecord,))
    assert (ctx.out / TOKENIZER / "tokenizer.json").is_file()


@pytest.mark.slow
def test_a_wrong_key_under_torchrun_is_told_once(tmp_path):
    run = torchrun(words(tmp_path / "run", "lrr=1"))
    assert run.returncode != 0
    assert run.stderr.count("error: lrr: no such key") == 1
    assert not Path(tmp_path / "run").exists()
