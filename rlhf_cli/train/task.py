"""What the training loop is given, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.models.wrapper import ModelWrapper
from rlhf_cli.train.evaluation import HeldOutMetrics, Intervals
from rlhf_cli.train.step_source import SampleWriter, StageState, StepSource
from rlhf_cli.train.update import Loss

Evaluate = Callable[[], HeldOutMetrics]
"""Computes held-out metrics; called without gradients."""


@dataclass(frozen=True)
class RunResult:
    """Result of a training run.

    Attributes:
        steps: steps of the whole run, those before a resume included; in PPO one is a rollout.
        seconds: time of this process in the loop.
        peak_memory: peak memory of each rank's process, in bytes.
        weights: name -> fp32 master of each trained parameter.
        before: metrics before the first step.
        after: metrics after the last step.
        intervals: `before` and `after` -> confidence intervals of these metrics.
    """

    steps: int
    seconds: float
    peak_memory: list[int]
    weights: dict[str, Tensor]
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Intervals] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """Inputs of the training loop: the model, its source of optimizer steps, and the loss.

    Attributes:
        policy: in fp32; its parameters are cast to the compute type when training starts.
        source: yields the optimizer steps.
        loss: micro-batch -> sums with their units.
        locate: rows of one example -> `file:line`, to name an example that fails.
        evaluate: held-out metrics, or None; called without gradients.
        state: what the stage keeps from step to step beside the weights.
        samples: writes responses after each evaluation, or None.
        finds_spikes: whether a sudden rise of the loss means something; of PPO it does not.
        lr_factors: name -> factor of the learning rate of a parameter; 1 where none is given.
    """

    policy: ModelWrapper
    source: StepSource
    loss: Loss
    locate: Callable[[TokenBatch], str]
    evaluate: Evaluate | None = None
    state: StageState = field(default_factory=StageState)
    samples: SampleWriter | None = None
    finds_spikes: bool = False
    lr_factors: Mapping[str, float] = field(default_factory=dict)
