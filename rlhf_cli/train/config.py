from dataclasses import dataclass, field
from typing import Annotated, Literal

from rlhf_cli.config.schema import Ge, Gt, Le, Lt, RuntimeOnly, Unit


@dataclass(kw_only=True)
class TrainConfig:
    """The loop: steps, optimizer, schedule, evaluation and checkpoints."""

    lr: Annotated[float, Gt(0)] | Literal["auto"] = "auto"
    """Peak learning rate of AdamW. `auto` is the stage's: for pretrain and sft 2e-5, with an
    adapter 2e-4."""

    epochs: Annotated[int, Ge(1)] = 1
    """Passes over the training rows; `train.max_steps` ends the run earlier."""

    max_steps: Annotated[int, Ge(0), Unit("optimizer steps")] = 0
    """Stop after this many steps, starting new epochs as needed; 0 lets `train.epochs` decide."""

    batch_size: Annotated[int, Ge(1), Unit("examples")] = 32
    """Examples per optimizer step over all devices; mathematics, not memory."""

    micro_batch_tokens: Annotated[int, Ge(0), RuntimeOnly(), Unit("tokens")] = 0
    """Tokens one forward pass holds; no effect on the result. 0 finds it from the model's shape and
    the device's memory."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute type; trained weights keep fp32 masters. `auto` is bf16 where the hardware has it."""

    warmup_steps: Annotated[int, Ge(0), Unit("optimizer steps")] = 0
    """Steps over which the rate rises linearly from 0 to `train.lr`."""

    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Decay after warm-up; `wsd` is constant, then linear over the last `train.decay_fraction`."""

    min_lr_ratio: Annotated[float, Ge(0), Le(1)] = 0.0
    """Final rate as a share of `train.lr`; not used by `constant`."""

    decay_fraction: Annotated[float, Ge(0), Le(1)] = 0.2
    """Share of all steps in which `wsd` decays."""

    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = "adamw"
    """`adamw_8bit` holds the moments in 8 bits (arXiv:2110.02861), `paged_*` lets them go to the
    host's memory where a GPU's is short (arXiv:2305.14314); both need the extra `quant`."""

    weight_decay: Annotated[float, Ge(0)] = 0.0
    """Decoupled decay of AdamW on matrices; biases and norms have none."""

    adam_beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Decay of AdamW's first moment."""

    adam_beta2: Annotated[float, Ge(0), Lt(1)] = 0.999
    """Decay of AdamW's second moment."""

    adam_epsilon: Annotated[float, Gt(0)] = 1e-8
    """AdamW's term against division by zero."""

    max_grad_norm: Annotated[float, Ge(0)] = 1.0
    """Clip the global gradient norm to this; 0 never clips."""

    eval_steps: Annotated[int, Ge(0), Unit("optimizer steps")] = 0
    """Evaluate every so many steps; 0 evaluates before the first and after the last step only."""

    early_stop: Annotated[int, Ge(0), Unit("evaluations")] = 0
    """End the run after this many evaluations in a row without a lower held-out loss; 0 never."""

    result: Literal["last", "best"] = "last"
    """Which weights the run gives: those of the last step, or of the lowest held-out loss, whose
    checkpoint is then kept; where no step lowered it, these are the starting weights."""

    save_steps: Annotated[int, Ge(0), RuntimeOnly(), Unit("optimizer steps")] = 0
    """Write a checkpoint every so many steps; 0 only at the end."""

    keep_checkpoints: Annotated[int, Ge(1), RuntimeOnly()] = 3
    """Newest checkpoints to keep."""

    log_steps: Annotated[int, Ge(1), RuntimeOnly(), Unit("optimizer steps")] = 1
    """Write one line of metrics every so many steps; values in between are merged, not lost."""

    gradient_checkpointing: Annotated[bool, RuntimeOnly()] = False
    """Recompute activations in the backward pass: about a third slower, far less memory."""

    compile: Annotated[bool, RuntimeOnly()] = False
    """Compile the layers with torch.compile, which takes half a minute to two before the first
    step; on a CPU it needs a C++ compiler. Not beside `train.gradient_checkpointing`."""

    deterministic: Annotated[bool, RuntimeOnly()] = False
    """Use torch's deterministic algorithms: on a GPU the same run gives the same bits again, more
    slowly, and an operation that has no such algorithm ends the run. A CPU needs it for nothing."""

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        found = []
        if self.compile and self.gradient_checkpointing:
            found.append(
                "train.compile: got true beside train.gradient_checkpointing=true, and a layer is "
                "either compiled or recomputed. Try train.compile=false"
            )
        if self.eval_steps or (not self.early_stop and self.result == "last"):
            return found
        asked = f"early_stop: got {self.early_stop}" if self.early_stop else "result: got best"
        return [
            *found,
            f"train.{asked} without train.eval_steps; need evaluations to compare. "
            "Try train.eval_steps=50",
        ]


Tracker = Literal[
    "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]


@dataclass(kw_only=True)
class LogConfig:
    """What is shown of the rows, and where metrics go beside `metrics.jsonl`."""

    trackers: list[Tracker] = field(default_factory=list)
    """Names of trackers, as in `[tensorboard]`; each needs its own package."""

    preview: Annotated[bool, RuntimeOnly()] = True
    """Show the first training example, its trained tokens marked; in a sweep the first job does."""

    samples: Annotated[Literal["short", "full"], RuntimeOnly()] = "short"
    """How much of the first example and of sampled responses is shown: `short` cuts long texts."""
