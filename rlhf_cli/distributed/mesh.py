"""The device mesh over which the weights of a run are sharded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from rlhf_cli.distributed.process_group import ensure_process_group
from rlhf_cli.errors import ConfigError
from rlhf_cli.launch.config import LaunchConfig

REPLICATE, SHARD = "replicate", "shard"
"""Dimensions of the mesh; the first only with `launch.shard=hybrid`."""


@dataclass(frozen=True)
class ShardMesh:
    """How the weights of a run are divided among its processes.

    Attributes:
        device_mesh: one dimension, or two where several groups of processes each hold the whole
            model.
        device: that computes; shards may be on the host.
        reshard: free gathered weights after the forward pass, and gather them again for the
            backward pass.
        offload: `none`, `optimizer` or `all`, see `launch.offload`.
    """

    device_mesh: DeviceMesh
    device: torch.device
    reshard: bool
    offload: str

    @property
    def shard_device(self) -> torch.device:
        """Device of the shards."""
        return torch.device("cpu") if self.offload == "all" else self.device

    @property
    def replicas(self) -> int:
        """Number of groups of processes that each hold the whole model."""
        names = self.device_mesh.mesh_dim_names or ()
        return self.device_mesh.size(0) if REPLICATE in names else 1

    @property
    def keeps_masters_on_host(self) -> bool:
        """Whether the optimizer's weights and moments are on the host, and the shards are not."""
        return self.offload == "optimizer" and self.device.type != "cpu"


def create_mesh(cfg: LaunchConfig, device: torch.device) -> ShardMesh | None:
    """Create the mesh of a run; None where weights are not sharded. All ranks call it together.

    Args:
        cfg: `launch`.
        device: that computes.

    Raises:
        ConfigError: the processes cannot be divided into `launch.replicas` groups.
    """
    if cfg.shard == "none":
        return None
    ensure_process_group()
    world_size = dist.get_world_size()
    if world_size % cfg.replicas or (cfg.shard == "hybrid" and world_size < 2 * cfg.replicas):
        raise ConfigError(
            f"launch.replicas: got {cfg.replicas}, but there are {world_size} processes; need "
            "groups of equal size, of at least 2 processes each. Try launch.shard=full"
        )
    if cfg.shard == "hybrid":
        shape, names = (cfg.replicas, world_size // cfg.replicas), (REPLICATE, SHARD)
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
    else:
        mesh = init_device_mesh(device.type, (world_size,), mesh_dim_names=(SHARD,))
    return ShardMesh(mesh, device, cfg.shard != "grad_op", cfg.offload)
