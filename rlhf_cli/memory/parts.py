"""What estimates are made from and of: rows of the data, phases and their parts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlhf_cli.data.config import DataConfig
from rlhf_cli.memory.device import Device
from rlhf_cli.memory.weights import HeldModel

PHASES = ("load", "rollout", "score", "prepare", "update", "evaluate", "save")
"""Phases of a command, in their order; each command has some of them."""

USABLE = {"cpu": 0.9, "cuda": 0.95}
"""Share of a device's memory that a command may fill; the rest is for what is not counted."""

FRAMEWORK = {"cpu": 550 << 20, "cuda": 700 << 20}
"""Libraries and their buffers, of a GPU also its context."""

HOLES = {"cpu": 0.05, "cuda": 0.0}
"""Share of what is counted for freed blocks that no later one fits: glibc keeps them in a process;
CUDA's allocator counts used blocks only (python -m benchmarks.memory_model)."""

WORKSPACE = {
    ("cpu", 4): 20 << 20,
    ("cpu", 2): 130 << 20,
    ("cuda", 4): 40 << 20,
    ("cuda", 2): 40 << 20,
}
"""By device and bytes of the compute type: buffers of matrix products. In bf16 on a CPU, oneDNN
keeps 128 compiled kernels of about a megabyte."""

ADAPTER_WORKSPACE = {"cpu": 100 << 20, "cuda": 0}
"""More of these, for the low-rank products of an adapter; measured."""

Parts = dict[str, int]
"""Part -> bytes."""


@dataclass(frozen=True)
class Rows:
    """What an estimate needs to know of the data.

    Attributes:
        longest: tokens of the longest row.
        mean: tokens of a row on average.
        rows_per_example: rows of an example, which is never split: 2 for pairs.
        scored: tokens of a row that are in the loss, on average; 0 for all.
        shared: tokens that the rows of an example begin with in common, on average, where these are
            computed once.
        longest_prompt: tokens of the longest prompt of a rollout; 0 takes what `data.max_length`
            leaves.
        examples: in the training data; 0 if unknown.
        new_tokens: tokens that were added to the tokenizer, whose embeddings an adapter learns.
    """

    longest: int
    mean: float
    rows_per_example: int = 1
    scored: float = 0.0
    shared: float = 0.0
    longest_prompt: int = 0
    examples: int = 0
    new_tokens: int = 0

    @classmethod
    def of_config(cls, cfg: Any) -> "Rows":
        """Assume the most that a config allows: every row is as long as `data.max_length`."""
        named = getattr(getattr(cfg, "data", None), "max_length", None)
        length = named if isinstance(named, int) else DataConfig.max_length
        together = getattr(cfg, "rows_per_example", 1)
        return cls(longest=length, mean=float(length), rows_per_example=together)


@dataclass(frozen=True)
class Estimate:
    """Memory of each phase, per process.

    Attributes:
        phases: phase -> part -> bytes; the phases that the command has, in their order.
        usable: bytes that a process may fill.
        micro_batch_tokens: tokens of a forward and backward pass; 0 for a command without.
        slots: responses decoded at once; 0 for a command without.
        processes: of the run; on a CPU they share its memory.
        trained: number of trained parameters.
        host: part -> bytes of a process that `launch.offload` keeps in the host's memory.
        notes: what the reader has to know about the numbers.
    """

    phases: Mapping[str, Parts]
    usable: int
    micro_batch_tokens: int = 0
    slots: int = 0
    processes: int = 1
    trained: int = 0
    host: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def total(self, phase: str) -> int:
        """Bytes of a phase."""
        return sum(self.phases[phase].values())

    @property
    def peak(self) -> tuple[str, int]:
        """The phase that needs most, and its bytes."""
        phase = max(self.phases, key=self.total)
        return phase, self.total(phase)

    @property
    def fits(self) -> bool:
        """Whether the peak is within what a process may fill."""
        return self.peak[1] <= self.usable


@dataclass(frozen=True)
class Settings:
    """What the estimates of all commands are made from; as the arguments of `estimate_memory`."""

    command: str
    cfg: Any
    rows: Rows
    device: Device
    processes: int

    @property
    def usable(self) -> int:
        """Bytes that one process may fill."""
        sharing = self.processes if self.device.kind == "cpu" else 1
        return int(USABLE[self.device.kind] * self.device.total_bytes / sharing)

    @property
    def framework(self) -> Parts:
        """Libraries and the context of the device."""
        return {"framework": FRAMEWORK[self.device.kind]}

    def with_allocator(self, parts: Parts, itemsize: int, *, adapter: bool = False) -> Parts:
        """Add what the allocator holds beside the tensors, and the libraries."""
        kind = self.device.kind
        workspace = WORKSPACE[kind, itemsize] + (ADAPTER_WORKSPACE[kind] if adapter else 0)
        holes = int(HOLES[kind] * sum(parts.values()))
        return parts | {"allocator": holes + workspace} | self.framework


def compute_itemsize(precision: str, device: Device) -> int:
    """Bytes of the compute type that `precision` chooses on a device."""
    return 4 if precision == "fp32" or (precision == "auto" and not device.bf16) else 2


def add(parts: Parts, name: str, size: float) -> None:
    """Add bytes to a part; a part without any is left out."""
    if size:
        parts[name] = parts.get(name, 0) + int(size)


def shape_notes(models: Iterable[HeldModel]) -> tuple[str, ...]:
    """Name the models whose tensors are not known."""
    return tuple(
        f"{model.role}: the tensors of {model.shape.model_type} are not known without its weight "
        "files; counted as those of a Llama with the same sizes"
        for model in models
        if not model.shape.exact
    )
