from dataclasses import dataclass, field
from typing import Annotated, Literal

from rlhf_cli.config.schema import Ge, Gt, Le, Lt, RuntimeOnly, Unit


@dataclass(kw_only=True)
class TrainConfig:
    """Training loop: steps, optimizer, schedule, evaluation and checkpoints."""

    lr: Annotated[float, Gt(0)] | Literal["auto"] = "auto"
    """Peak learning rate of AdamW. `auto` is the stage's default: for pretrain and sft 2e-5, or
    2e-4 with an adapter."""

    epochs: Annotated[int, Ge(1)] = 1
    """Passes over the training rows; `train.max_steps` ends the run earlier."""

    max_steps: Annotated[int, Ge(0), Unit("optimizer steps")] = 0
    """Stop after this many steps, starting new epochs as needed; 0 lets `train.epochs` decide."""

    batch_size: Annotated[int, Ge(1), Unit("examples")] = 32
    """Examples per optimizer step over all devices; it does not change memory use."""

    micro_batch_tokens: Annotated[int, Ge(0), RuntimeOnly(), Unit("tokens")] = 0
    """Tokens of one forward and backward pass; no effect on the result. 0 finds it from the model's
    shape and the device's memory."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute dtype; trained weights keep fp32 masters. `auto` is bf16 if the hardware has it."""

    warmup_steps: Annotated[int, Ge(0), Unit("optimizer steps")] = 0
    """Steps in which the learning rate rises linearly from 0 to `train.lr`."""

    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Decay after warm-up; `wsd` is constant, then linear over the last `train.decay_fraction`."""

    min_lr_ratio: Annotated[float, Ge(0), Le(1)] = 0.0
    """Final learning rate as a fraction of `train.lr`; not used by `constant`."""

    decay_fraction: Annotated[float, Ge(0), Le(1)] = 0.2
    """Fraction of all steps in which `wsd` decays."""

    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = "adamw"
    """`adamw_8bit` keeps the moments in 8 bits (arXiv:2110.02861), `paged_*` moves them to the host
    when GPU memory runs short (arXiv:2305.14314); both need the extra `quant`."""

    weight_decay: Annotated[float, Ge(0)] = 0.0
    """Decoupled weight decay of AdamW on matrices; biases and norms have none."""

    adam_beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    """AdamW's β1: decay of the first moment."""

    adam_beta2: Annotated[float, Ge(0), Lt(1)] = 0.999
    """AdamW's β2: decay of the second moment."""

    adam_epsilon: Annotated[float, Gt(0)] = 1e-8
    """AdamW's ε: added to the denominator."""

    max_grad_norm: Annotated[float, Ge(0)] = 1.0
    """Clip the global gradient norm to this value; 0 never clips."""

    eval_steps: Annotated[int, Ge(0), Unit("optimizer steps")] = 0
    """Steps between evaluations; 0 evaluates before the first and after the last step only."""

    early_stop_patience: Annotated[int, Ge(0), Unit("evaluations")] = 0
    """Stop after this many evaluations in a row without a lower held-out loss; 0 never stops."""

    result: Literal["last", "best"] = "last"
    """Weights that the run saves: of the last step, or of the lowest held-out loss, whose
    checkpoint is then kept; if no step lowered it, the starting weights."""

    save_steps: Annotated[int, Ge(0), RuntimeOnly(), Unit("optimizer steps")] = 0
    """Steps between checkpoints; 0 writes one only at the end."""

    keep_checkpoints: Annotated[int, Ge(1), RuntimeOnly()] = 3
    """Number of newest checkpoints to keep."""

    async_save: Annotated[bool, RuntimeOnly()] = False
    """Write checkpoints in a thread while training goes on, from a copy in the host's memory: 12
    bytes per trained parameter that the process holds, 6 with moments in 8 bits. The next
    checkpoint and the end of the run wait for it; until it is complete, the one before stands."""

    log_steps: Annotated[int, Ge(1), RuntimeOnly(), Unit("optimizer steps")] = 1
    """Steps between lines of metrics; a line averages the steps since the last one."""

    gradient_checkpointing: Annotated[bool, RuntimeOnly()] = False
    """Recompute activations in the backward pass: about a third slower, much less memory."""

    compile: Annotated[bool, RuntimeOnly()] = False
    """Compile the layers with torch.compile: half a minute to two minutes before the first step; on
    a CPU it needs a C++ compiler. Does not work with `train.gradient_checkpointing`."""

    deterministic: Annotated[bool, RuntimeOnly()] = False
    """Use torch's deterministic algorithms: a GPU run is then bitwise reproducible, but slower, and
    stops at an operation that has no such algorithm. CPU runs are deterministic without it."""

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        found = []
        if self.compile and self.gradient_checkpointing:
            found.append(
                "train.compile: got true beside train.gradient_checkpointing=true, and a layer is "
                "either compiled or recomputed. Try train.compile=false"
            )
        if self.eval_steps or (not self.early_stop_patience and self.result == "last"):
            return found
        asked = (
            f"early_stop_patience: got {self.early_stop_patience}"
            if self.early_stop_patience
            else "result: got best"
        )
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
    """Output of the run: shown examples, and trackers beside `metrics.jsonl`."""

    trackers: list[Tracker] = field(default_factory=list)
    """Experiment trackers, as in `[tensorboard]`; each needs its own package."""

    preview: Annotated[bool, RuntimeOnly()] = True
    """Show the first training example, trained tokens marked; in a sweep, only in the first job."""

    samples: Annotated[Literal["short", "full"], RuntimeOnly()] = "short"
    """Length of the shown example and responses: `short` cuts long texts."""

    sample_prompts: Annotated[int, Ge(0), Le(64), RuntimeOnly(), Unit("prompts")] = 2
    """Prompts that the policy answers before the first step, at each evaluation and at the end, for
    `report.html`: the first of the held-out rows, else of the training rows. Greedy, at most 64
    tokens each; no effect on training. Rewards of ppo score the held-out ones. 0 answers none."""
