"""The one training loop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.context import RunContext, say
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.errors import Interrupted, NonFinite
from rlhf_cli.models.wrapper import ModelWrapper, without_dropout
from rlhf_cli.runs.contents import METRICS
from rlhf_cli.train.best import Best
from rlhf_cli.train.checkpoint import (
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from rlhf_cli.train.config import TrainConfig
from rlhf_cli.train.exchange import require_equal_weights
from rlhf_cli.train.metrics import Meter, MetricsFile, ProgressLine
from rlhf_cli.train.optim import MasterAdamW
from rlhf_cli.train.schedule import learning_rate
from rlhf_cli.train.signals import StopRequest, stop_on_request
from rlhf_cli.train.source import StageState, StepSource
from rlhf_cli.train.speed import measure_peak, peak_memory, work_of
from rlhf_cli.train.tracking import Trackers
from rlhf_cli.train.update import (
    Loss,
    NonFiniteStep,
    accumulate,
    clip_and_step,
    culprits,
)


@dataclass(frozen=True)
class RunResult:
    """What a run did.

    Attributes:
        steps: optimizer steps of the whole run, earlier parts included.
        seconds: of this process in the loop.
        peak_memory: bytes, the most that each rank's process held.
        weights: name -> fp32 master of each trained parameter.
        before: evaluation before the first step.
        after: evaluation after the last step.
    """

    steps: int
    seconds: float
    peak_memory: list[int]
    weights: dict[str, Tensor]
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)


@dataclass
class Trainer:
    """The state that one run of the loop carries from step to step."""

    policy: ModelWrapper
    source: StepSource
    loss: Loss
    cfg: TrainConfig
    lr: float
    ctx: RunContext
    evaluate: Callable[[], dict[str, float]] | None
    where: Callable[[TokenBatch], str]
    machinery: dict[str, Any]
    trackers: Trackers | None = None
    state: StageState = field(default_factory=StageState)

    def __post_init__(self) -> None:
        self.optimizer = MasterAdamW(self.policy, self.cfg, self.ctx.compute)
        self.ranks = self.ctx.ranks
        self.meter = Meter(self.ranks)
        self.file = MetricsFile(self.ctx.out / METRICS, self.ranks)
        self.step = 0
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.best = Best()
        self.work = work_of(self.policy)
        self.peak = measure_peak(self.ctx.device, self.ctx.compute)

    def run(self, checkpoint: Path | None) -> RunResult:
        """Train from a checkpoint, or from the beginning, to the last step."""
        began = time.monotonic()
        if checkpoint is not None:
            self._continue_from(checkpoint)
        else:
            self.file.cut(0)
            torch.manual_seed(self.ctx.seed + self.ranks.rank)  # other rows, other noise
            self.before = self._evaluate()
            if self.before:
                self.best.note(0, self.before)
            self.log(under("eval/", self.before))
            if self.before and self.cfg.result == "best":
                self._save()  # the starting weights, which no later step may be better than
        require_equal_weights(self.optimizer, self.ranks, self.step)
        with stop_on_request() as stop:
            self._train(stop)
        seconds = time.monotonic() - began
        memory = self.ranks.gather(peak_memory(self.ctx.device))
        weights, after = self._result()
        return RunResult(self.step, seconds, memory, weights, self.before, after)

    def _result(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The weights that the run gives, and how they were evaluated."""
        if self.cfg.result == "last" or self.best.step == self.step:
            return self.optimizer.masters, self.after
        which = f"the weights after step {self.best.step}" if self.best.step else "starting weights"
        say(f"result: {which}, which had the lowest held-out loss")
        return load_weights(self.ctx.out, self.best.step), self.best.values

    def _train(self, stop: StopRequest) -> None:
        """All remaining steps."""
        with contextlib.closing(ProgressLine(self.source.total_steps, self.step)) as progress:
            while not self._gave_up() and self.take():
                values: dict[str, float] = {}
                if self._due(self.cfg.log_steps):
                    values |= self.meter.read() | {"memory_bytes": peak_memory(self.ctx.device)}
                    progress.show(self.step, values)
                better = False
                if self._due(self.cfg.eval_steps):
                    progress.close()
                    self.after = self._evaluate()
                    values |= under("eval/", self.after)
                    better = bool(self.after) and self.best.note(self.step, self.after)
                self.log(values)
                asked = stop.agreed(self.ranks)
                wanted = (better and self.cfg.result == "best") or self._gave_up()
                if asked or wanted or self._due(self.cfg.save_steps):
                    self._save()
                if asked and self.step < self.source.total_steps:
                    raise Interrupted(
                        f"{asked} after step {self.step}; the checkpoint is written. "
                        "Give the same command again to continue"
                    )
        self.log(self.meter.read())  # an early end can leave steps between two logged ones

    def _gave_up(self) -> bool:
        """Whether the held-out loss has not fallen for as long as is waited for."""
        return 0 < self.cfg.early_stop <= self.best.waited

    def log(self, values: dict[str, float]) -> None:
        """Write values of the step to `metrics.jsonl` and the trackers; nothing where none are."""
        if values:
            self.file.write(self.step, values)
            if self.trackers is not None:
                self.trackers.log(self.step, values)

    def _due(self, every: int) -> bool:
        """Whether something is to be done after this step; the last step is always one."""
        return self.step == self.source.total_steps or bool(every and self.step % every == 0)

    def take(self) -> bool:
        """One step, or false when the run is over."""
        began = time.monotonic()
        updates = self.source.next_step()
        if updates is None:
            return False
        lr = learning_rate(self.lr, self.step, self.source.total_steps, self.cfg)
        done: list[TokenBatch] = []
        for update in updates:
            self._update(update, lr)
            done += update
        self.step += 1
        self.file.make()
        self.state.after_step(self.step)
        self.meter.add(self.source.take_metrics())
        self._measure(lr, done, time.monotonic() - began)
        return True

    def _update(self, update: list[TokenBatch], lr: float) -> None:
        """One move of the optimizer; every rank notes its rows, rank 0 what is the same on all."""
        device_rows = [rows.to(self.ctx.device) for rows in update]
        gradients = accumulate(device_rows, self.loss, self.optimizer, self.ranks)
        try:
            clip_and_step(gradients, self.optimizer, lr, self.cfg.max_grad_norm)
        except NonFiniteStep as error:
            raise self._explain(error, device_rows) from error
        once = int(self.ranks.main)
        self.meter.add(
            {
                "loss": (gradients.loss * once, once),
                **gradients.metrics,
                "grad_norm": (gradients.norm * once, once),
            }
        )

    def _measure(self, lr: float, done: list[TokenBatch], seconds: float) -> None:
        """Note what a step took, and what of it was padding (computed over 1) or shared (under)."""
        once = int(self.ranks.main)
        tokens = sum(len(rows.tokens) for rows in done)
        computed = float(sum(self.policy.computed_tokens(rows) for rows in done))
        work = sum(self.work.of(rows) for rows in done)
        self.meter.add(
            {
                "lr": (torch.tensor(lr * once, dtype=torch.float64), once),
                "step_seconds": (torch.tensor(seconds * once, dtype=torch.float64), once),
                "tokens_per_second": (torch.tensor(float(tokens)), seconds * once),
                "computed_per_token": (torch.tensor(computed), tokens),
                "peak_fraction": (torch.tensor(work / self.peak, dtype=torch.float64), seconds),
            }
        )

    def _explain(self, error: NonFiniteStep, step: list[TokenBatch]) -> NonFinite:
        """Name the rows; parameters are still those of the step before."""
        own = sorted(
            (rows.example_ids[0], self.where(rows), what)
            for rows, what in culprits(step, self.loss, self.optimizer)
        )
        found = sorted(one for of_rank in self.ranks.gather(own) for one in of_rank)
        named = [f"  {place}: {what} is not finite" for _, place, what in found[:5]]
        if len(found) > 5:
            named.append(f"  and {len(found) - 5} more of the step's rows")
        if not found:
            named = ["  each row alone is finite; only their sum overflows"]
        advice = "Lower lr, lower train.max_grad_norm, or use train.precision=fp32"
        head = f"step {self.step + 1}: {error}; stopped before the optimizer step. {advice}"
        return NonFinite("\n".join([head, *named]))

    def _evaluate(self) -> dict[str, float]:
        if self.evaluate is None:
            return {}
        with torch.no_grad(), without_dropout(self.policy):
            values = self.evaluate()
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        say(f"held-out after step {self.step}: {shown}")
        return values

    def _save(self) -> None:
        require_equal_weights(self.optimizer, self.ranks, self.step)
        state = {
            "source": self.source.state_dict(),
            "stage": self.state.state_dict(),
            "meter": self.ranks.gather(self.meter.state_dict()),
            "lines": self.file.lines,
            "before": self.before,
            "after": self.after,
            "best": self.best.state_dict(),
            "machinery": self.machinery,
        }
        save_checkpoint(
            self.ctx.out,
            self.step,
            self.optimizer,
            state,
            self.cfg.keep_checkpoints,
            self.ranks,
            tensors=self.state.tensors(),
            spared=self.best.step if self.cfg.result == "best" else None,
        )

    def _continue_from(self, checkpoint: Path) -> None:
        state = load_checkpoint(checkpoint, self.optimizer, self.state.tensors(), self.ranks.rank)
        self.source.load_state_dict(state["source"])
        self.state.load_state_dict(state["stage"])
        self.meter.load_state_dict(state["meter"][self.ranks.rank])
        self.file.cut(state["lines"])
        self.step, self.before, self.after = state["step"], state["before"], state["after"]
        self.best = Best(**state["best"])
        say(
            f"continuing from {checkpoint.name}: weights, optimizer, schedule, random generators "
            f"and data position are those after step {self.step}"
        )


def under(prefix: str, values: dict[str, float]) -> dict[str, float]:
    """The values with a prefix to their names."""
    return {f"{prefix}{name}": value for name, value in values.items()}


def fit(
    policy: ModelWrapper,
    source: StepSource,
    loss: Loss,
    cfg: TrainConfig,
    ctx: RunContext,
    *,
    lr: float,
    where: Callable[[TokenBatch], str],
    evaluate: Callable[[], dict[str, float]] | None = None,
    checkpoint: Path | None = None,
    machinery: dict[str, Any] | None = None,
    trackers: Trackers | None = None,
    state: StageState | None = None,
) -> RunResult:
    """Train a policy on the steps of a source.

    Args:
        policy: in fp32; its parameters become the compute type here.
        source: yields steps.
        loss: rows -> sums with their units.
        cfg: steps, optimizer, schedule, logging, saving.
        ctx: device, compute type, run folder, and the ranks that take part; each calls this.
        lr: peak learning rate.
        where: the rows of one example -> `file:line`, to name one that fails.
        evaluate: held-out metrics; called without gradients.
        checkpoint: continue from this one.
        machinery: what a checkpoint stores beside, so that a continued run cuts and rounds alike.
        trackers: get what `metrics.jsonl` gets.
        state: what the stage keeps from step to step.

    Returns:
        Steps, time, memory, and the evaluations before and after.

    Raises:
        NonFinite: a loss or gradient was not finite; nothing was changed by that step.
        CheckpointError: a checkpoint could not be written or read, or ranks differ in weights.
        PeerLost: another rank ended.
    """
    trainer = Trainer(
        policy,
        source,
        loss,
        cfg,
        lr,
        ctx,
        evaluate,
        where,
        machinery or {},
        trackers,
        state or StageState(),
    )
    return trainer.run(checkpoint)
