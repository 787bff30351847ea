"""The training loop of all stages."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.console import logger
from rlhf_cli.context import RunContext
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.errors import InferenceServerError, Interrupted, NonFinite, RankFailed
from rlhf_cli.losses.reduction import scaled_loss
from rlhf_cli.memory.phase import phase
from rlhf_cli.models.wrapper import without_dropout
from rlhf_cli.runs.run_files import METRICS
from rlhf_cli.train.checkpoint import has_checkpoint, load_checkpoint, load_weights
from rlhf_cli.train.checkpoint_writer import Checkpoint, CheckpointWriter
from rlhf_cli.train.config import TrainConfig
from rlhf_cli.train.evaluation import HeldOutMetrics, Intervals
from rlhf_cli.train.metrics import Meter, MetricsFile, ProgressLine, Trackers, with_prefix
from rlhf_cli.train.optim import MasterAdamW, learning_rate
from rlhf_cli.train.resume import StartPoint, meter_of_rank
from rlhf_cli.train.spikes import SpikeLog
from rlhf_cli.train.stopping import BestEvaluation, StopRequest, stop_on_request
from rlhf_cli.train.task import RunResult, TrainingTask
from rlhf_cli.train.throughput import count_flops, measure_peak, peak_memory
from rlhf_cli.train.update import (
    NonFiniteStep,
    accumulate,
    clip_and_step,
    name_non_finite,
    require_equal_weights,
)


def fit(
    task: TrainingTask,
    cfg: TrainConfig,
    ctx: RunContext,
    start: StartPoint | None = None,
    trackers: Trackers | None = None,
) -> RunResult:
    """Train a model on the steps of a source.

    Args:
        task: model, source, loss and evaluation.
        cfg: steps, optimizer, schedule, logging, saving; `lr` is a number.
        ctx: device, compute type, run folder, and the ranks that take part; each calls this.
        start: the checkpoint to continue from, and the fingerprint that checkpoints store.
        trackers: receive the same values as `metrics.jsonl`.

    Returns:
        Steps, time, memory, and the evaluations before and after.

    Raises:
        NonFinite: a loss or gradient was not finite; that step changed nothing.
        CheckpointError: a checkpoint could not be written or read, or ranks differ in weights.
        RankFailed: another rank ended.
    """
    start = start or StartPoint()
    return TrainingLoop(task, cfg, ctx, start.fingerprint, trackers).run(start.checkpoint)


class TrainingLoop:
    """Training loop and its state between steps; `fit` creates and runs it."""

    def __init__(
        self,
        task: TrainingTask,
        cfg: TrainConfig,
        ctx: RunContext,
        fingerprint: dict[str, Any],
        trackers: Trackers | None = None,
    ) -> None:
        assert cfg.lr != "auto"  # the stage's default rate is filled in before
        self.task, self.cfg, self.ctx = task, cfg, ctx
        self.lr: float = cfg.lr
        self.fingerprint, self.trackers = fingerprint, trackers
        self.optimizer = MasterAdamW(
            task.policy,
            cfg,
            ctx.compute,
            ctx.mesh,
            writes=ctx.ranks.is_main,
            lr_factors=task.lr_factors,
        )
        self.ranks = ctx.ranks
        self.meter = Meter(self.ranks.data)
        self.file = MetricsFile(ctx.out / METRICS, self.ranks)
        self.step = 0
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.intervals: dict[str, Intervals] = {}
        self.last, self.lowest = HeldOutMetrics({}), HeldOutMetrics({})
        """The last evaluation of this process, and the one with the lowest loss."""
        self.best = BestEvaluation()
        self.values: dict[str, float] | None = None
        """Of the step that has been taken and not logged, where its evaluation is still to come."""
        self.checkpoints = CheckpointWriter(
            ctx.out, cfg.keep_checkpoints, self.ranks, background=cfg.async_save
        )
        self.spikes = SpikeLog(ctx.out, task.locate, self._example_loss, ctx.ranks)
        self.flops = count_flops(task.policy)
        self.peak = measure_peak(ctx.device, ctx.compute)

    def run(self, checkpoint: Path | None) -> RunResult:
        """Train from a checkpoint, or from the beginning, to the last step."""
        began = time.monotonic()
        if checkpoint is not None:
            self._continue_from(checkpoint)
        else:
            self.file.cut(0)
            self.spikes.truncate(0)
            torch.manual_seed(self.ctx.seed + self.ranks.rank)  # dropout differs between ranks
            self.before = self._evaluate()
            if self.before:
                self.intervals["before"] = self.last.intervals()
                self.best.update(0, self.before)
                self.lowest = self.last
            self.log(with_prefix("eval/", self.before))
            self._write_samples(first=True)
            if self.before and self.cfg.result == "best":
                self._save()  # the starting weights, which no later step may be better than
        require_equal_weights(self.optimizer, self.ranks, self.step)
        with stop_on_request() as stop:
            try:
                self._train(stop)
            except (Interrupted, NonFinite):  # on all ranks after the same step
                self.checkpoints.wait()
                raise
            except (InferenceServerError, RankFailed) as error:
                if self.ranks.any(isinstance(error, InferenceServerError)):
                    self._save_for_later()
                raise
            self.checkpoints.wait()
        seconds = time.monotonic() - began
        memory = self.ranks.all_gather_json(peak_memory())
        weights, after = self._result()
        return RunResult(self.step, seconds, memory, weights, self.before, after, self.intervals)

    def _result(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The resulting weights, and their held-out metrics."""
        if self.cfg.result == "last" or self.best.step == self.step:
            self.intervals["after"] = self.last.intervals()
            return self.optimizer.masters, self.after
        which = f"the weights after step {self.best.step}" if self.best.step else "starting weights"
        logger.info(f"result: {which}, which had the lowest held-out loss")
        self.intervals["after"] = self.lowest.intervals()
        weights = load_weights(self.ctx.out, self.best.step, self.optimizer.layouts, self.ranks)
        return weights, self.best.values

    def _train(self, stop: StopRequest) -> None:
        """Take all remaining steps."""
        with contextlib.closing(ProgressLine(self.task.source.total_steps, self.step)) as progress:
            while self.values is not None or (not self._stops_early() and self.train_step()):
                self._finish_step(stop, progress)
        self.log(self.meter.read())  # an early end can leave steps between two logged ones

    def _finish_step(self, stop: StopRequest, progress: ProgressLine) -> None:
        """Log, evaluate and save after a step, as they are due."""
        self.checkpoints.check()
        if self.values is None:
            self.values = {}
            if self._due(self.cfg.log_steps):
                self.values = self.meter.read() | {"memory_bytes": peak_memory()}
                progress.show(self.step, self.values)
        better = False
        if self._due(self.cfg.eval_steps):
            progress.close()
            self.after = self._evaluate()
            self.values |= with_prefix("eval/", self.after)
            better = bool(self.after) and self.best.update(self.step, self.after)
            self.lowest = self.last if better else self.lowest
        self.log(self.values)
        self.values = None
        if self._due(self.cfg.eval_steps):
            self._write_samples()
        asked = stop.agreed(self.ranks)
        wanted = (better and self.cfg.result == "best") or self._stops_early()
        if asked or wanted or self._due(self.cfg.save_steps):
            self._save()
        if asked and self.step < self.task.source.total_steps:
            raise Interrupted(
                f"{asked} after step {self.step}; the checkpoint is written. "
                "Give the same command again to continue"
            )

    def _stops_early(self) -> bool:
        """Whether the held-out loss has not fallen for `early_stop_patience` evaluations."""
        return 0 < self.cfg.early_stop_patience <= self.best.waited

    def log(self, values: dict[str, float]) -> None:
        """Write values of the step, if any, to `metrics.jsonl` and the trackers."""
        if values:
            self.file.write(self.step, values)
            if self.trackers is not None:
                self.trackers.log(self.step, values)

    def _due(self, every: int) -> bool:
        """Whether an action taken every `every` steps is due; always true after the last step."""
        return self.step == self.task.source.total_steps or bool(every and self.step % every == 0)

    def train_step(self) -> bool:
        """Take one step; return False if there is none left."""
        began = time.monotonic()
        updates = self.task.source.next_step()
        if updates is None:
            return False
        lr = learning_rate(self.lr, self.step, self.task.source.total_steps, self.cfg)
        done: list[TokenBatch] = []
        loss = 0.0
        for update in updates:
            loss = self._update(update, lr)
            done += update
        self.step += 1
        self.file.touch()
        if self.task.finds_spikes:
            self.spikes.check(self.step, loss, done)
        self.task.state.after_step(self.step)
        self.meter.add(self.task.source.take_metrics())
        self._measure(lr, done, time.monotonic() - began)
        return True

    @phase("update")
    def _update(self, update: list[TokenBatch], lr: float) -> float:
        """Take one optimizer step, and return its loss.

        One rank adds the metrics that are the same on all ranks.
        """
        device_rows = [rows.to(self.ctx.device) for rows in update]
        gradients = accumulate(device_rows, self.task.loss, self.optimizer, self.ranks)
        try:
            loss = clip_and_step(gradients, self.optimizer, lr, self.cfg.max_grad_norm)
        except NonFiniteStep as error:
            raise self._non_finite(error, device_rows) from error
        once = int(self.ranks.data.is_main)
        self.meter.add(
            {
                "loss": (gradients.loss * once, once),
                **gradients.metrics,
                "grad_norm": (gradients.norm * once, once),
            }
        )
        return loss

    def _measure(self, lr: float, done: list[TokenBatch], seconds: float) -> None:
        """Add time and speed; computed_per_token rises with padding, falls with shared prefixes."""
        once = int(self.ranks.data.is_main)
        tokens = sum(len(rows.tokens) for rows in done)
        computed = float(sum(self.task.policy.computed_tokens(rows) for rows in done))
        work = sum(self.flops.of_rows(rows.row_lengths, len(rows.scored)) for rows in done)
        work /= self.ranks.context.world_size
        self.meter.add(
            {
                "lr": (torch.tensor(lr * once, dtype=torch.float64), once),
                "step_seconds": (torch.tensor(seconds * once, dtype=torch.float64), once),
                "tokens_per_second": (torch.tensor(float(tokens)), seconds * once),
                "computed_per_token": (torch.tensor(computed), tokens),
                "peak_fraction": (torch.tensor(work / self.peak, dtype=torch.float64), seconds),
            }
        )

    def _example_loss(self, rows: TokenBatch) -> float:
        """Loss of one example alone; uses no random numbers and changes nothing."""
        with torch.no_grad(), without_dropout(self.task.policy):
            return float(scaled_loss(self.task.loss(rows.to(self.ctx.device)), rows.count))

    def _non_finite(self, error: NonFiniteStep, step: list[TokenBatch]) -> NonFinite:
        """The error that names the examples; parameters are still those of the step before."""
        task = self.task
        named = name_non_finite(step, task.loss, task.locate, self.optimizer, self.ranks)
        advice = "Lower lr, lower train.max_grad_norm, or use train.precision=fp32"
        head = f"step {self.step + 1}: {error}; stopped before the optimizer step. {advice}"
        return NonFinite("\n".join([head, *named]))

    @phase("evaluate")
    def _evaluate(self) -> dict[str, float]:
        if self.task.evaluate is None:
            return {}
        with torch.no_grad(), without_dropout(self.task.policy):
            self.last = self.task.evaluate()
        values = self.last.values
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        logger.info(f"held-out after step {self.step}: {shown}")
        return values

    def _write_samples(self, *, first: bool = False) -> None:
        if self.task.samples is not None:
            if first:
                self.task.samples.cut(-1)  # of a run that stopped before its first save
            self.task.samples.write(self.step)

    def _save_for_later(self) -> None:
        """Save after the last step, unless that is done, for a run that ends between two steps."""
        self.checkpoints.wait()
        saved = has_checkpoint(self.ctx.out, self.step)
        if self.step and not self.ranks.any(saved):  # where not all machines have its folder
            self._save()
            self.checkpoints.wait()
            logger.info(f"the checkpoint after step {self.step} is written")

    @phase("save")
    def _save(self) -> None:
        require_equal_weights(self.optimizer, self.ranks, self.step)
        state = {
            "source": self.task.source.state_dict(),
            "stage": self.task.state.state_dict(),
            "meter": self.ranks.data.all_gather_json(self.meter.state_dict()),
            "lines": self.file.lines,
            "before": self.before,
            "after": self.after,
            "intervals": self.intervals,
            "best": self.best.state_dict(),
            "spikes": self.spikes.state_dict(),
            "machinery": self.fingerprint,
            "values": self.values,
        }
        kept = self.task.state
        content = Checkpoint(self.step, self.optimizer, state, kept.tensors(), kept.layouts())
        self.checkpoints.save(content, self.best.step if self.cfg.result == "best" else None)

    def _continue_from(self, checkpoint: Path) -> None:
        kept = self.task.state
        state = load_checkpoint(
            checkpoint, self.optimizer, kept.tensors(), self.ranks, layouts=kept.layouts()
        )
        self.task.source.load_state_dict(state["source"])
        self.task.state.load_state_dict(state["stage"])
        self.meter.load_state_dict(meter_of_rank(state["meter"], self.ranks.data))
        self.file.cut(state["lines"])
        self.step, self.before, self.after = state["step"], state["before"], state["after"]
        self.best = BestEvaluation(**state["best"])
        # both missing in a checkpoint of version 0.1
        self.intervals, self.values = state.get("intervals", {}), state.get("values")
        if self.task.samples is not None:
            self.task.samples.cut(self.step)
        self.spikes.load_state_dict(state.get("spikes", {}))
        self.spikes.truncate(self.step)
        logger.info(
            f"continuing from {checkpoint.name}: weights, optimizer, schedule, random generators "
            f"and data position are those after step {self.step}"
        )
