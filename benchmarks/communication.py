"""Communication of a training step on paper: bytes, time, and what bounds it, for 8 to 512 GPUs.

    python -m benchmarks.communication [--nvlink 450] [--network 50] [--mfu 0.4] [--tokens 8192]
                                       [--micro-batches 4] [--markdown]

Nothing runs: the bytes follow from the collectives that a step makes, the times from the given
bandwidths. An all-gather or reduce-scatter of S bytes among k GPUs brings S (k-1)/k to each; on k/g
machines of g GPUs, S (k/g - 1)/(k/g) enters each machine, through g network cards. An all-reduce
brings twice that. Gathers overlap with computing; the all-reduce of `launch.shard=none` at the end
of a step and the gathering for a rollout do not.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.recipe_memory import SHAPES
from rlhf_cli.memory.shape import shape_of
from rlhf_cli.memory.sharding import units_of
from rlhf_cli.memory.weights import HeldModel

COMPUTE, REDUCE = 2, 4
"""Bytes of a value in an all-gather of weights (bf16) and in a sum of gradients (fp32)."""

MODELS = {"7 B": "Llama-2-7B", "70 B": "Llama-3-70B"}
KINDS = ("none", "full", "grad_op", "hybrid")
GPUS = (8, 64, 512)
STAGES = ("sft", "dpo", "ppo")


@dataclass(frozen=True)
class Cluster:
    """Machines, and how fast their GPUs are.

    Attributes:
        gpus: in all.
        per_node: GPUs of a machine, each with a network card of its own.
        nvlink: bytes per second into a GPU from the others of its machine.
        network: bytes per second into a GPU's network card.
        flops: per second of a GPU while it computes.
        memory: bytes per second that a GPU reads, which bounds decoding.
    """

    gpus: int
    per_node: int = 8
    nvlink: float = 450e9
    network: float = 50e9
    flops: float = 0.4 * 989e12
    memory: float = 3.35e12

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return -(-self.gpus // self.per_node)


@dataclass(frozen=True)
class Traffic:
    """Bytes that a GPU receives from its machine, and through its network card."""

    nvlink: float = 0.0
    network: float = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.nvlink + other.nvlink, self.network + other.network)

    def times(self, count: float) -> Traffic:
        """The same several times."""
        return Traffic(count * self.nvlink, count * self.network)

    def seconds(self, cluster: Cluster) -> float:
        """Time of the slower way; both work at once."""
        return max(self.nvlink / cluster.nvlink, self.network / cluster.network)

    def bound(self, cluster: Cluster) -> str:
        """The slower way."""
        inside, outside = self.nvlink / cluster.nvlink, self.network / cluster.network
        return "network" if outside > inside else "NVLink"


@dataclass(frozen=True)
class Size:
    """Parameters of a model: of its root unit (embeddings, output layer), and of its layers."""

    root: int
    layers: int

    @property
    def all(self) -> int:
        """All parameters."""
        return self.root + self.layers


@dataclass(frozen=True)
class Work:
    """What a GPU does in a step.

    Attributes:
        tokens: of a micro-batch.
        micro_batches: of a step.
        responses: that it decodes in a step, of `new_tokens` each; ppo only.
        slots: responses decoded at once.
    """

    tokens: int = 8192
    micro_batches: int = 4
    responses: int = 64
    new_tokens: int = 512
    slots: int = 64


@dataclass(frozen=True)
class Step:
    """A step on paper.

    Attributes:
        overlapped: traffic while the GPU computes.
        alone: traffic while it waits.
        compute: seconds of computing.
        decode: seconds of sampling responses.
    """

    overlapped: Traffic
    alone: Traffic
    compute: float
    decode: float

    @property
    def traffic(self) -> Traffic:
        """All bytes of the step."""
        return self.overlapped + self.alone

    def seconds(self, cluster: Cluster) -> float:
        """Time of the step: computing or communicating, whichever is longer, and what waits."""
        busy = max(self.compute, self.overlapped.seconds(cluster))
        return busy + self.alone.seconds(cluster) + self.decode

    def tokens_to_hide(self, cluster: Cluster, work: Work) -> float:
        """Tokens of a micro-batch whose computing takes as long as the traffic beside it."""
        return work.tokens * self.overlapped.seconds(cluster) / self.compute

    def bound(self, cluster: Cluster) -> str:
        """What takes the largest part of the step."""
        waits = self.overlapped.seconds(cluster)
        parts = {
            "decoding": self.decode,
            self.alone.bound(cluster): self.alone.seconds(cluster),
        }
        busy = "compute" if self.compute >= waits else self.overlapped.bound(cluster)
        parts[busy] = parts.get(busy, 0.0) + max(self.compute, waits)
        return max(parts, key=lambda name: parts[name])


def all_gather(size: float, members: int, cluster: Cluster) -> Traffic:
    """Bytes that each of the members, which fill their machines, receives of a whole of `size`."""
    if members <= 1:
        return Traffic()
    here = min(members, cluster.per_node)
    nodes = -(-members // here)
    return Traffic(size * (members - 1) / members, size * (nodes - 1) / nodes / here)


def between_nodes(size: float, replicas: int) -> Traffic:
    """All-reduce of `size` bytes among GPUs of different machines: all through the network."""
    return Traffic(0.0, 2 * size * (replicas - 1) / replicas)


def forward_traffic(model: Size, kind: str, cluster: Cluster) -> Traffic:
    """Gathering of all weights for a pass without gradients."""
    if kind == "none":
        return Traffic()
    return all_gather(COMPUTE * model.all, _members(kind, cluster), cluster)


def training_traffic(model: Size, kind: str, cluster: Cluster) -> Traffic:
    """Traffic of a forward and backward pass.

    `full` gathers the layers again for the backward pass, `grad_op` keeps them; activation
    checkpointing recomputes a layer while it is gathered, and adds none.
    """
    if kind == "none":
        return Traffic()
    members = _members(kind, cluster)
    found = forward_traffic(model, kind, cluster)
    if kind != "grad_op":
        found += all_gather(COMPUTE * model.layers, members, cluster)
    found += all_gather(REDUCE * model.all, members, cluster)  # a reduce-scatter brings as much
    if kind == "hybrid":
        found += between_nodes(REDUCE * model.all / members, cluster.gpus // members)
    return found


def _members(kind: str, cluster: Cluster) -> int:
    """GPUs that divide one copy of the weights; of `hybrid` those of a machine."""
    return min(cluster.per_node, cluster.gpus) if kind == "hybrid" else cluster.gpus


def final_traffic(model: Size, kind: str, cluster: Cluster) -> Traffic:
    """All-reduce of fp32 gradients at the end of a step, where nothing is sharded."""
    if kind != "none":
        return Traffic()
    return all_gather(REDUCE * model.all, cluster.gpus, cluster).times(2)


def step_of(stage: str, model: Size, kind: str, cluster: Cluster, work: Work = Work()) -> Step:
    """Count a step of full training with activation checkpointing.

    dpo has its reference's log-probs stored. ppo samples, computes log-probs of policy and
    reference, values and rewards by models of the policy's size, and trains policy and value model
    once.
    """
    passes = work.micro_batches
    training = training_traffic(model, kind, cluster).times(passes)
    final = final_traffic(model, kind, cluster)
    product = 2.0 * model.all * work.tokens * passes / cluster.flops
    if stage != "ppo":
        return Step(training, final, 4 * product, 0.0)
    scoring = forward_traffic(model, kind, cluster).times(4 * passes)
    gathering = forward_traffic(model, kind, cluster)
    rounds = -(-work.responses // work.slots)
    decode = rounds * work.new_tokens * COMPUTE * model.all / cluster.memory
    return Step(
        training.times(2) + scoring, final.times(2) + gathering, (2 * 4 + 4) * product, decode
    )


def size_of(name: str) -> Size:
    """Parameters of a model of `recipe_memory`."""
    shape = shape_of(name, SHAPES[name])
    counts = units_of(HeldModel("policy", shape, trained=shape.parameters), 1)
    return Size(counts.root, counts.layers)


HEAD = ("model", "stage", "GPUs", "shard", "NVLink GB", "network GB", "communication s")
HEAD += ("compute s", "decoding s", "step s", "bound by", "tokens to hide")


def rows(given: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """The rows of the table."""
    work = Work(given.tokens, given.micro_batches)
    for name, shape in MODELS.items():
        model = size_of(shape)
        for stage in given.stages:
            for gpus in given.gpus:
                speed = given.mfu * given.peak * 1e12
                cluster = Cluster(gpus, 8, given.nvlink * 1e9, given.network * 1e9, speed)
                for kind in KINDS:
                    if kind != "hybrid" or cluster.nodes > 1:
                        step = step_of(stage, model, kind, cluster, work)
                        yield (name, stage, str(gpus), kind, *_cells(step, cluster, work))


def _cells(step: Step, cluster: Cluster, work: Work) -> Iterator[str]:
    traffic = step.traffic
    yield f"{traffic.nvlink / 1e9:,.0f}"
    yield f"{traffic.network / 1e9:,.1f}"
    yield f"{step.overlapped.seconds(cluster) + step.alone.seconds(cluster):.2f}"
    yield f"{step.compute:.2f}"
    yield f"{step.decode:.1f}" if step.decode else "-"
    yield f"{step.seconds(cluster):.2f}"
    yield step.bound(cluster)
    yield f"{step.tokens_to_hide(cluster, work):,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nvlink", type=float, default=450.0, help="GB/s into a GPU")
    parser.add_argument("--network", type=float, default=50.0, help="GB/s into a GPU's card")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the peak while computing")
    parser.add_argument("--peak", type=float, default=989.0, help="TFLOP/s of a GPU in bf16")
    parser.add_argument("--tokens", type=int, default=8192, help="of a micro-batch")
    parser.add_argument("--micro-batches", type=int, default=4, help="of a GPU in a step")
    parser.add_argument("--gpus", nargs="+", type=int, default=list(GPUS))
    parser.add_argument("--stages", nargs="+", default=list(STAGES))
    parser.add_argument("--markdown", action="store_true")
    given = parser.parse_args()
    found = [HEAD, *rows(given)]
    if given.markdown:
        found.insert(1, ("---",) * len(HEAD))
        print("\n".join(f"| {' | '.join(row)} |" for row in found))
        return
    widths = [max(len(row[column]) for row in found) for column in range(len(HEAD))]
    for row in found:
        cells = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells))


if __name__ == "__main__":
    main()
