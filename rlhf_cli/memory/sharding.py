"""Divide the memory of a run among processes, as `launch.shard` does, and between device and host.

The rules are those of FSDP2: a layer is gathered when it computes, while the next one is gathered;
embeddings, output layer and last norm are one unit, whole from the forward pass to the end of the
backward pass. All-gathers have the compute type, reduce-scatters fp32.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from rlhf_cli.launch.config import LaunchConfig
from rlhf_cli.memory.parts import Parts
from rlhf_cli.memory.shape import ModelShape
from rlhf_cli.memory.weights import HeldModel

WHOLE_LAYERS = 2
"""Layers that are whole at once: the one that computes, and the one gathered meanwhile."""

MASTER_BYTES = 4
"""Of a trained weight, of its gradient, and of a value in a reduce-scatter: fp32."""

HOST_PARTS = {
    "none": (),
    "optimizer": ("fp32 masters", "optimizer"),
    "all": ("weights", "fp32 masters", "optimizer", "gradients"),
}
"""`launch.offload` -> ends of the names of the parts that are kept in the host's memory."""

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks?)\.(\d+)\.")


@dataclass(frozen=True)
class Units:
    """Bytes in the compute type of what a model gathers at once.

    Attributes:
        root: embeddings, output layer, last norm and heads.
        layer: the largest layer.
        layers: all layers.
    """

    root: int
    layer: int
    layers: int

    @property
    def whole(self) -> int:
        """Bytes of all weights."""
        return self.root + self.layers


@dataclass(frozen=True)
class Sharding:
    """How the processes of a run divide its models.

    Attributes:
        kind: `launch.shard`.
        shards: processes that divide one copy of a model.
        context: processes that share the tokens of a micro-batch.
        offload: `launch.offload`; `none` on a CPU, whose memory is the host's.
        world: number of processes.
    """

    kind: str = "none"
    shards: int = 1
    context: int = 1
    offload: str = "none"
    world: int = 1

    @classmethod
    def of(cls, launch: LaunchConfig, processes: int, device_kind: str) -> "Sharding":
        """Describe the sharding of a run.

        Args:
            launch: its configuration.
            processes: that it has in all; `launch.processes` may be 0 or another launcher's.
            device_kind: `cpu` or `cuda`.
        """
        divided = launch.shard != "none"
        return cls(
            kind=launch.shard,
            shards=max(1, processes // launch.replicas) if divided else 1,
            context=launch.context_parallel,
            offload=launch.offload if divided and device_kind == "cuda" else "none",
            world=processes,
        )

    @property
    def divides(self) -> bool:
        """Whether weights, gradients and optimizer are divided."""
        return self.kind != "none"

    @property
    def data_parallel(self) -> int:
        """Processes, or groups of them, that have rows of their own."""
        return max(1, self.world // self.context)

    def share(self, size: float) -> int:
        """Bytes of one process's shard; rows that do not divide evenly are not counted."""
        return -(-int(size) // self.shards)

    def trained_here(self, model: HeldModel) -> int:
        """Trained parameters whose master, gradient and moments this process holds.

        Adapters, and heads beside them, are whole on every process.
        """
        return self.share(model.trained) if model.trains_base else model.trained

    def tokens(self, count: int) -> int:
        """Tokens of a micro-batch that one process computes."""
        return ceil(count / self.context)

    def weight_bytes(self, model: HeldModel, itemsize: int) -> int:
        """Bytes of a model's weights between two passes, without the fp32 masters.

        Under sharding the fp32 shards are both: they are gathered in the compute type. Where the
        masters are on the host, the device keeps fp32 shards beside them.
        """
        if not self.divides:
            return model.frozen_bytes + model.trained * itemsize
        if not model.trains_base:
            return self.share(model.frozen_bytes) + model.trained * itemsize
        own = MASTER_BYTES * model.trained if self.offload == "optimizer" else 0
        return self.share(model.frozen_bytes + own)

    def master_bytes(self, model: HeldModel, itemsize: int) -> int:
        """Bytes of the fp32 weights that are trained; 0 where the weights themselves are those."""
        sharded = self.divides and model.trains_base
        if itemsize == MASTER_BYTES and not sharded and self.offload != "optimizer":
            return 0
        return MASTER_BYTES * self.trained_here(model)

    def gathered_bytes(
        self, models: Iterable[HeldModel], itemsize: int, *, whole: bool = False
    ) -> int:
        """Bytes of the weights that are whole at once while models compute.

        Args:
            models: whose forward passes are kept for a backward pass, or one that computes.
            itemsize: bytes of the compute type.
            whole: whether all layers are, as where responses are decoded.
        """
        if not self.divides:
            return 0
        found = [units_of(model, itemsize) for model in models if model.own_base]
        if whole or self.kind == "grad_op":
            return sum(units.whole for units in found)
        layers = max((min(units.layers, WHOLE_LAYERS * units.layer) for units in found), default=0)
        return sum(units.root for units in found) + layers

    def freed_bytes(self, models: Iterable[HeldModel], itemsize: int, device_kind: str) -> int:
        """Bytes of freed gathered weights and fp32 gradients that a CPU's allocator keeps.

        A fit to `python -m benchmarks.sharded_memory`, within 12 % for 1, 2 and 4 processes of a
        model of 135 M: as if every layer's had stayed. CUDA's allocator uses them again.
        """
        if not self.divides or device_kind != "cpu":
            return 0
        own = [model for model in models if model.own_base]
        reduced = sum(MASTER_BYTES * model.trained for model in own if model.trains_base)
        return sum(units_of(model, itemsize).whole for model in own) + reduced

    def buffers_of_layer(self, model: HeldModel, itemsize: int) -> int:
        """Bytes of gradients while a layer's are reduced: whole, and in fp32 as sent and received.

        The gradient of the output layer waits meanwhile, in the compute type.
        """
        layer, _, output = _trained_counts(model)
        return itemsize * output + self._reduced_bytes(layer, itemsize)

    def buffers_of_root(self, model: HeldModel, itemsize: int) -> int:
        """The same while the gradients of the root unit are reduced, at the end of the pass."""
        _, root, _ = _trained_counts(model)
        return self._reduced_bytes(root, itemsize)

    def _reduced_bytes(self, count: int, itemsize: int) -> int:
        return itemsize * count + MASTER_BYTES * count + self.share(MASTER_BYTES * count)

    def on_device(self, parts: Parts, *, adapter: bool) -> Parts:
        """The parts that are in the device's memory.

        Args:
            parts: of a phase.
            adapter: whether an adapter is trained, which `launch.offload=all` leaves on the device.
        """
        moved = self._moved(adapter)
        return {name: size for name, size in parts.items() if not _is_one_of(name, moved)}

    def on_host(self, parts: Parts, *, adapter: bool) -> Parts:
        """The parts that are in the host's memory, and what a step copies there."""
        moved = self._moved(adapter)
        found = {name: size for name, size in parts.items() if _is_one_of(name, moved)}
        if self.offload == "optimizer" and "gradients" in parts:
            found["gradients"] = parts["gradients"]
        return found

    def _moved(self, adapter: bool) -> tuple[str, ...]:
        return ("weights",) if self.offload == "all" and adapter else HOST_PARTS[self.offload]

    def notes(self, policy: HeldModel, itemsize: int, *, decodes: bool) -> tuple[str, ...]:
        """What the reader has to know: why responses need all weights on every process."""
        if not (self.divides and decodes):
            return ()
        size = units_of(policy, itemsize).whole / 1e9
        return (
            "responses (rollouts, log.sample_prompts) are decoded with all weights on every "
            f"process: {size:,.2f} GB in the compute type, whatever launch.shard divides",
        )


def _is_one_of(part: str, ends: Sequence[str]) -> bool:
    """Whether the name of a part is one of some, or ends with it as in `policy weights`."""
    return part != "gathered weights" and part.endswith(tuple(ends)) and bool(ends)


def units_of(model: HeldModel, itemsize: int) -> Units:
    """Count what a model gathers at once: all its weights, or beside an adapter the frozen ones.

    Args:
        model: whose weights are in the compute type, or quantized.
        itemsize: bytes of the compute type.
    """
    root, largest, layers = _base_counts(model.shape)
    size = model.frozen_bytes + (model.trained * itemsize if model.trains_base else 0)
    of_root = min(size, root * itemsize)
    of_layers = size - of_root
    return Units(of_root, ceil(of_layers * largest / max(1, layers)), of_layers)


def _trained_counts(model: HeldModel) -> tuple[int, int, int]:
    """Trained parameters of the largest layer, of the root unit, and of the output layer."""
    if not model.trains_base:
        return 0, 0, 0
    root, largest, _ = _base_counts(model.shape)
    shape = model.shape
    output = shape.by_kind.get("output", shape.embedding if shape.tied else 0)
    return largest, root, 0 if "score" in shape.by_kind else output


@lru_cache(maxsize=256)
def _base_counts(shape: ModelShape) -> tuple[int, int, int]:
    """Parameters outside of layers, of the largest layer, and of all layers."""
    layers: Counter[str] = Counter()
    root = 0
    for tensor in shape.tensors:
        if match := _LAYER.search(tensor.name):
            layers[match[1]] += tensor.count
        else:
            root += tensor.count
    return root, max(layers.values(), default=0), sum(layers.values())
