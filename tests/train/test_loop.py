import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.context import RunContext
from rlhf_cli.errors import CheckpointError, Interrupted, NonFinite
from rlhf_cli.kernels.registry import choose
from rlhf_cli.losses.likelihood import nll_loss
from rlhf_cli.losses.reduction import LossOutput, LossTerm
from rlhf_cli.models.policy import Policy
from rlhf_cli.runs.folder import list_checkpoints
from rlhf_cli.train import checkpoint_files
from rlhf_cli.train.checkpoint import latest_checkpoint, load_checkpoint
from rlhf_cli.train.checkpoint_writer import Checkpoint, CheckpointWriter
from rlhf_cli.train.config import TrainConfig
from rlhf_cli.train.loop import fit
from rlhf_cli.train.metrics import MetricsFile, read_metrics
from rlhf_cli.train.optim import MasterAdamW, learning_rate
from rlhf_cli.train.resume import StartPoint, check_resumable
from rlhf_cli.train.task import TrainingTask
from tests.helpers import fill_disk_after_one_checkpoint, random_rows, tiny_llama

CPU = torch.device("cpu")


class FixedSteps:
    """The same few steps for every run; `cut` splits each into micro-batches of one example."""

    def __init__(self, total=6, *, cut=False, rows=8):
        self.total_steps, self.cut, self.rows, self.done = total, cut, rows, 0

    def next_step(self):
        if self.done == self.total_steps:
            return None
        self.done += 1
        lengths = [5 + (7 * self.done + 11 * i) % 40 for i in range(self.rows)]
        step = random_rows(lengths, seed=self.done)
        return [list(step.split()) if self.cut else [step]]

    def take_metrics(self):
        return {}

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.done = state["done"]


def train(
    out, source, *, lr=1e-3, compute=torch.float32, checkpoint=None, seed=0, wrap=None, **settings
):
    out.mkdir(exist_ok=True)
    policy = Policy(tiny_llama(seed).train(), choose("auto", CPU)[0], flat=True)

    def loss(rows):
        nll = nll_loss(policy(rows).logp)
        return LossOutput(terms={"nll": LossTerm(nll.sum(), unit="tokens")})

    cfg = TrainConfig(**{"save_steps": 0, "lr": lr, **settings})
    ctx = RunContext(CPU, compute, seed, out)

    task = TrainingTask(
        policy=policy,
        source=source,
        loss=wrap(loss) if wrap else loss,
        locate=lambda rows: f"pairs.jsonl:{rows.example_ids[0]}",
    )
    return fit(task, cfg, ctx, StartPoint(checkpoint))


def losses(out):
    return [line["loss"] for line in read_metrics(out / "metrics.jsonl")]


def test_loss_falls_and_each_step_is_logged(tmp_path):
    class OneStep(FixedSteps):
        def next_step(self):
            step = super().next_step()
            return step and [[random_rows([20, 30], seed=1)]]

    result = train(tmp_path / "run", OneStep(30), lr=1e-2)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert lines[-1]["loss"] < 0.3 * lines[0]["loss"]
    assert {"loss", "lr", "grad_norm", "tokens_per_second"} <= lines[0].keys()
    assert result.steps == 30


def test_one_batch_of_8_equals_eight_micro_batches_of_1(tmp_path):
    """20 steps in fp32: loss to 1e-5, gradient norm to 1e-4, and on average far closer."""
    train(tmp_path / "whole", FixedSteps(20))
    train(tmp_path / "cut", FixedSteps(20, cut=True))
    whole, cut = (
        torch.tensor(
            [[line["loss"], line["grad_norm"]] for line in read_metrics(d / "metrics.jsonl")],
            dtype=torch.float64,
        )
        for d in (tmp_path / "whole", tmp_path / "cut")
    )
    difference = (whole - cut).abs()
    assert difference[:, 0].max() < 1e-5
    assert difference[:, 1].max() < 1e-4
    assert difference[:, 0].mean() < 1e-6
    assert difference[:, 1].mean() < 1e-5


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
def test_a_continued_run_is_bitwise_the_unbroken_one(tmp_path, compute):
    unbroken = train(tmp_path / "a", FixedSteps(9), compute=compute, save_steps=4, log_steps=3)
    first = FixedSteps(9)

    def stop_after_six(loss):
        def stopping(rows):
            if first.done == 7:
                raise KeyboardInterrupt
            return loss(rows)

        return stopping

    with pytest.raises(KeyboardInterrupt):
        train(
            tmp_path / "b", first, compute=compute, save_steps=4, log_steps=3, wrap=stop_after_six
        )
    found = latest_checkpoint(tmp_path / "b")
    assert found.name == "step-000004"
    torch.rand(7)  # another state of the generator than at the checkpoint
    continued = train(
        tmp_path / "b",
        FixedSteps(9),
        compute=compute,
        save_steps=4,
        log_steps=3,
        checkpoint=found,
        seed=1,
    )
    for name, weight in unbroken.weights.items():
        assert torch.equal(continued.weights[name], weight), name
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_bf16_copies_follow_fp32_masters(tmp_path):
    result = train(tmp_path / "run", FixedSteps(2), compute=torch.bfloat16)
    assert {weight.dtype for weight in result.weights.values()} == {torch.float32}


def test_old_checkpoints_are_dropped(tmp_path):
    train(tmp_path / "run", FixedSteps(6), save_steps=1, keep_checkpoints=2)
    names = [path.name for path in list_checkpoints(tmp_path / "run")]
    assert names == ["step-000005", "step-000006"]


def test_a_non_finite_loss_stops_before_the_step_and_names_the_row(tmp_path):
    def spoil(loss):
        def spoiled(rows):
            out = loss(rows)
            total = out.terms["nll"].total
            bad = bool((rows.example_of_row == 3).any())
            factor = math.inf if bad and source.done == 3 else 1.0
            return LossOutput(terms={"nll": LossTerm(total * factor, unit="tokens")})

        return spoiled

    source = FixedSteps(5, cut=True)
    with pytest.raises(NonFinite, match=r"(?s)step 3: .*pairs.jsonl:3: loss is not finite"):
        train(tmp_path / "run", source, wrap=spoil)
    assert len(losses(tmp_path / "run")) == 2


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "optimizer.safetensors", "state.json", "index.json"]
)
def test_a_damaged_checkpoint_is_refused(tmp_path, name):
    train(tmp_path / "run", FixedSteps(2))
    found = latest_checkpoint(tmp_path / "run")
    content = bytearray((found / name).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (found / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be continued from"):
        train(tmp_path / "run", FixedSteps(4), checkpoint=found)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    train(tmp_path / "run", FixedSteps(2))
    found = latest_checkpoint(tmp_path / "run")
    with pytest.raises(CheckpointError, match="embed_tokens"):
        load_checkpoint(found, optimizer(hidden_size=64), {})


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    fill_disk_after_one_checkpoint(monkeypatch)
    with pytest.raises(CheckpointError, match=r"no space left.*step-000002 still stands"):
        train(tmp_path / "run", FixedSteps(6), save_steps=2)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000002"]


def test_saving_in_the_background_changes_no_bit(tmp_path):
    settings = {"save_steps": 2, "keep_checkpoints": 9}
    for background in (False, True):
        train(tmp_path / str(background), FixedSteps(6), async_save=background, **settings)
    one, two = (tmp_path / str(background) / "checkpoints" for background in (False, True))
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*.safetensors"))
    assert names == sorted(str(path.relative_to(two)) for path in two.rglob("*.safetensors"))
    assert len(names) == 3 * 3
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_a_run_saved_in_the_background_continues_bitwise(tmp_path):
    unbroken = train(tmp_path / "a", FixedSteps(6))
    train(tmp_path / "b", FixedSteps(6), async_save=True, save_steps=4, keep_checkpoints=9)
    [found, _] = list_checkpoints(tmp_path / "b")
    continued = train(tmp_path / "b", FixedSteps(6), checkpoint=found, seed=1)
    for name, weight in unbroken.weights.items():
        assert torch.equal(continued.weights[name], weight), name


def test_a_full_disk_in_the_background_ends_the_run(tmp_path, monkeypatch):
    fill_disk_after_one_checkpoint(monkeypatch)
    with pytest.raises(CheckpointError, match=r"no space left.*step-000002 still stands"):
        train(tmp_path / "run", FixedSteps(500), save_steps=2, async_save=True)
    assert len(losses(tmp_path / "run")) < 500
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000002"]


def write_slowly(monkeypatch):
    """Files are written after the steps of a short run."""
    real = checkpoint_files.save_file

    def slow(tensors, path):
        time.sleep(1)
        real(tensors, path)

    monkeypatch.setattr(checkpoint_files, "save_file", slow)


def test_an_interrupted_run_waits_for_what_is_written_in_the_background(tmp_path, monkeypatch):
    write_slowly(monkeypatch)
    source = FixedSteps(5)

    def interrupt(loss):
        def interrupting(rows):
            if source.done == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return loss(rows)

        return interrupting

    with pytest.raises(Interrupted, match="after step 2; the checkpoint is written"):
        train(tmp_path / "run", source, wrap=interrupt, async_save=True)
    assert latest_checkpoint(tmp_path / "run").name == "step-000002"


def test_a_non_finite_step_leaves_the_checkpoint_that_was_being_written(tmp_path, monkeypatch):
    write_slowly(monkeypatch)
    source = FixedSteps(5)

    def spoil(loss):
        def spoiled(rows):
            factor = math.inf if source.done == 3 else 1.0
            return LossOutput({"nll": LossTerm(loss(rows).terms["nll"].total * factor, "tokens")})

        return spoiled

    with pytest.raises(NonFinite, match="step 3"):
        train(tmp_path / "run", source, wrap=spoil, save_steps=2, async_save=True)
    assert latest_checkpoint(tmp_path / "run").name == "step-000002"


KILLED = """
import sys, time
from pathlib import Path
from rlhf_cli.train import checkpoint_files
from tests.train.test_loop import FixedSteps, train

real, calls = checkpoint_files.save_file, []

def half(tensors, path):
    calls.append(path)
    if len(calls) <= 2:  # weights and moments of the first checkpoint
        return real(tensors, path)
    path.write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(600)

checkpoint_files.save_file = half
train(Path(sys.argv[1]), FixedSteps(9), save_steps=2, async_save=True)
"""


@pytest.mark.slow
def test_a_run_killed_while_it_writes_goes_on_from_the_checkpoint_before(tmp_path):
    unbroken = train(tmp_path / "a", FixedSteps(9))
    out = tmp_path / "b"
    command = [sys.executable, "-c", KILLED, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    left = {path.name for path in (out / "checkpoints").iterdir()}
    assert left == {"step-000002", "step-000004.tmp"}
    found = latest_checkpoint(out)
    assert found.name == "step-000002"
    continued = train(out, FixedSteps(9), checkpoint=found, seed=1, save_steps=3)
    for name, weight in unbroken.weights.items():
        assert torch.equal(continued.weights[name], weight), name
    assert not list((out / "checkpoints").glob("*.tmp"))


def test_a_half_written_checkpoint_is_not_one(tmp_path):
    (tmp_path / "checkpoints" / "step-000004.tmp").mkdir(parents=True)
    assert latest_checkpoint(tmp_path) is None


def test_metrics_are_cut_back_and_a_half_line_goes(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        file.write(step, {"loss": 1.0})
    with file.path.open("a") as handle:
        handle.write('{"step": 4, "lo')
    file.cut(2)
    assert [line["step"] for line in read_metrics(file.path)] == [1, 2]
    assert file.lines == 2


def test_a_run_without_a_checkpoint_starts_its_metrics_anew(tmp_path):
    for _ in range(2):
        train(tmp_path / "run", FixedSteps(2))
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_writes_a_checkpoint(tmp_path, number):
    def kill_at_two(loss):
        def killing(rows):
            if source.done == 2:
                os.kill(os.getpid(), number)
            return loss(rows)

        return killing

    source = FixedSteps(5)
    with pytest.raises(Interrupted, match="after step 2"):
        train(tmp_path / "run", source, wrap=kill_at_two)
    assert latest_checkpoint(tmp_path / "run").name == "step-000002"
    assert signal.getsignal(number) is not None


def test_a_half_deleted_checkpoint_does_not_count(tmp_path):
    for name in ("step-000002", "step-000004.old", "step-1000000"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-000002", "step-1000000"]


@pytest.mark.parametrize("name", ["compute", "data", "attention"])
def test_a_run_is_not_continued_with_other_machinery(tmp_path, name):
    stored = {"threads": 2, "micro_batch_tokens": 64, "compute": "bf16", "data": "a"}
    stored["attention"] = "per_row"
    content = Checkpoint(3, optimizer(), {"machinery": stored})
    CheckpointWriter(tmp_path, keep=1).save(content)
    found = latest_checkpoint(tmp_path)
    assert check_resumable(found, {**stored, "threads": 8, "micro_batch_tokens": 9}) == stored
    with pytest.raises(CheckpointError, match=f"{name}: .* -> other"):
        check_resumable(found, {**stored, name: "other"})


def optimizer(**shape):
    policy = Policy(tiny_llama(**shape), choose("auto", CPU)[0], flat=True)
    return MasterAdamW(policy, TrainConfig(), torch.float32)


def test_schedules_by_hand():
    def at(step, **settings):
        return learning_rate(1.0, step, 10, TrainConfig(**settings))

    assert [at(s, warmup_steps=4, schedule="constant") for s in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert at(0, schedule="cosine") == 1.0
    assert at(5, schedule="cosine") == pytest.approx(0.5)
    assert at(9, schedule="linear") == pytest.approx(0.1)
    assert at(5, schedule="linear", min_lr_ratio=0.2) == pytest.approx(0.6)
    wsd = [at(s, schedule="wsd", decay_fraction=0.4) for s in range(10)]
    assert wsd == pytest.approx([1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_clipping_scales_the_whole_gradient(tmp_path):
    """Adam is blind to the scale of all gradients; a tiny bound shows up through epsilon."""
    free = train(tmp_path / "free", FixedSteps(1), max_grad_norm=0.0, adam_epsilon=1.0)
    bound = train(tmp_path / "bound", FixedSteps(1), max_grad_norm=1e-3, adam_epsilon=1.0)
    start = dict(tiny_llama().named_parameters())
    name = "model.layers.0.mlp.up_proj.weight"
    moved = [(r.weights[f"model.{name}"] - start[name].detach()).norm() for r in (free, bound)]
    assert moved[1] < 0.01 * moved[0]


def test_metrics_are_means_over_the_log_interval(tmp_path):
    train(tmp_path / "each", FixedSteps(4))
    train(tmp_path / "pairs", FixedSteps(4), log_steps=2)
    each = losses(tmp_path / "each")
    assert_close(losses(tmp_path / "pairs"), [sum(each[:2]) / 2, sum(each[2:]) / 2])
