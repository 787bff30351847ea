from dataclasses import dataclass, field
from typing import Annotated, Literal

from rlhf_cli.config.rank_env import read_rank_env
from rlhf_cli.config.schema import Ge, RuntimeOnly
from rlhf_cli.launch.slurm.config import SlurmConfig


@dataclass(kw_only=True)
class LaunchConfig:
    """Processes that train one model together: how many, and what each of them holds."""

    kind: Annotated[Literal["local", "slurm"], RuntimeOnly()] = "local"
    """`local` starts the processes on this machine; `slurm` submits a job that starts them, as
    `launch.slurm` describes it, and returns."""

    processes: Annotated[int, Ge(0), RuntimeOnly()] = 1
    """Number of processes on this machine: one per GPU, or sharing the cores of a CPU. 0 uses all
    GPUs. The result equals that of one process up to rounding."""

    shard: Annotated[Literal["none", "full", "grad_op", "hybrid"], RuntimeOnly()] = "none"
    """What the processes divide among them (FSDP2). `none`: nothing, each holds the whole model.
    `full`: weights, gradients and optimizer state. `grad_op`: the same, but weights stay whole
    between the forward and the backward pass. `hybrid`: `full` within each of `launch.replicas`
    groups."""

    replicas: Annotated[int, Ge(1), RuntimeOnly()] = 1
    """Groups of processes that each hold the whole model, with `launch.shard=hybrid`: usually one
    per machine. It divides the number of processes."""

    context_parallel: Annotated[int, Ge(1), RuntimeOnly()] = 1
    """Processes that compute the tokens of the same micro-batches together, for rows that one
    device cannot hold: each has 1/N of the activations (Ulysses, arXiv:2309.14509). It divides the
    number of processes; rows are divided among the groups. It needs `per_row` attention. The result
    equals that of one process up to rounding."""

    offload: Annotated[Literal["none", "optimizer", "all"], RuntimeOnly()] = "none"
    """What is kept in the memory of the host instead of the GPU's: the optimizer's state and fp32
    weights, or `all` shards of weights, gradients and optimizer. Needs `launch.shard`."""

    slurm: SlurmConfig = field(default_factory=SlurmConfig)

    @property
    def started(self) -> int:
        """Number of processes of the run, also where torchrun started them; 0: one for each GPU."""
        if self.kind == "slurm":
            return self.slurm.processes
        own = read_rank_env()
        return own.world_size if own else self.processes

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        found = []
        if self.replicas > 1 and self.shard != "hybrid":
            found.append(
                f"launch.replicas: got {self.replicas} with launch.shard={self.shard}; only hybrid "
                "has replicas. Try launch.shard=hybrid"
            )
        if self.shard == "hybrid" and self.replicas == 1:
            found.append(
                "launch.shard: got hybrid with launch.replicas=1; need at least 2 groups of "
                "processes. Try launch.replicas=2, or launch.shard=full"
            )
        if self.shard == "hybrid" and self.replicas > 1 and 0 < self.started < 2 * self.replicas:
            found.append(
                f"launch.shard: got hybrid with launch.replicas={self.replicas} and {self.started} "
                "processes; need at least 2 in each group, to share weights. "
                f"Try launch.processes={2 * self.replicas}, or launch.shard=full"
            )
        if self.offload != "none" and self.shard == "none":
            found.append(
                f"launch.offload: got {self.offload} with launch.shard=none, which keeps nothing "
                "on the host. Try launch.shard=full"
            )
        return found + self._counts()

    def _counts(self) -> list[str]:
        """Numbers of processes that do not go together."""
        together, slurm = self.replicas * self.context_parallel, self.slurm
        if self.kind == "slurm" and self.processes not in (0, 1, slurm.processes):
            return [
                f"launch.processes: got {self.processes} with launch=slurm, which starts "
                f"{slurm.processes} (launch.slurm.nodes={slurm.nodes} x {slurm.tasks_per_node} on "
                "each); leave the key out"
            ]
        if not self.started or self.started % together == 0:
            return []
        need = f"need a multiple of launch.replicas x launch.context_parallel = {together}"
        if self.kind == "slurm":
            return [
                f"launch.slurm.nodes: got {slurm.nodes} with {slurm.tasks_per_node} processes on "
                f"each, {slurm.processes} together; {need}"
            ]
        if read_rank_env():
            return [f"WORLD_SIZE: got {self.started}; {need}. Try to start {together} processes"]
        return [f"launch.processes: got {self.processes}; {need}. Try launch.processes={together}"]
