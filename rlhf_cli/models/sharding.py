"""Sharded models: torch's FSDP2 around the layers and the whole of a `ModelWrapper`.

The wrapper itself is the root unit: embeddings, final norm and output layer are whole inside its
forward pass, where the log-prob primitive reads them. Trained weights are fp32 shards, gathered in
the compute type; their gradients are summed over the processes in fp32. Beside adapters only the
frozen base is sharded: adapters and value heads are small, every process holds them whole, and
their gradients are summed as without sharding.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from rlhf_cli.mesh import REPLICATE, ShardMesh
from rlhf_cli.models.wrapper import ModelWrapper
from rlhf_cli.shards import ShardLayout, whole

# no caller changes an output of a model in place
warnings.filterwarnings("ignore", r"FSDP2-wrapped module .* returned a view tensor", UserWarning)


def shard_model(model: ModelWrapper, mesh: ShardMesh, compute: torch.dtype) -> None:
    """Shard the weights of a model in place; all ranks call it together.

    Args:
        model: trained weights are fp32, frozen ones in the compute type or quantized; may be on the
            meta device.
        mesh: processes that share it.
        compute: type of the gathered weights.
    """
    offload = CPUOffloadPolicy(pin_memory=mesh.device.type == "cuda")
    options: dict[str, Any] = {
        "mesh": mesh.device_mesh,
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=compute if compute != torch.float32 else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,  # the layers get the compute type already
        ),
        "offload_policy": offload if mesh.offload == "all" else OffloadPolicy(),
        "ignored_params": replicated_params(model),
    }
    for layer in decoder_layers(model.model):
        fully_shard(layer, reshard_after_forward=mesh.reshard, **options)
    fully_shard(model, reshard_after_forward=False, **options)
    for unit in units(model):
        unit.set_gradient_divide_factor(1.0)  # losses are divided by global counts already
        unit.set_force_sum_reduction_for_comms(True)
    for method in model.entry_points:
        register_fsdp_forward_method(model, method)
    model.mesh, model.gathered_dtype = mesh, compute


def replicated_params(model: ModelWrapper) -> set[nn.Parameter]:
    """The parameters that every process holds whole: all trained ones beside adapters."""
    if model.adapters is None:
        return set()
    return {param for param in model.parameters() if param.requires_grad}


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The repeated layers of a transformers model, which are gathered one after another.

    They are the modules of the outermost lists, as `model.layers` is. The experts of a layer are a
    list inside it: they are gathered with their layer, since each process runs others of them.
    """
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, nn.ModuleList):
                found.extend(layer for layer in child if any(True for _ in layer.parameters()))
            else:
                visit(child)

    visit(model)
    return found


def units(model: nn.Module) -> list[FSDPModule]:
    """The modules of a model whose weights are gathered together, the root first.

    Those of another wrapper inside it, as a separate value model is, are not among them.
    """
    found: list[FSDPModule] = [model] if isinstance(model, FSDPModule) else []
    for child in model.children():
        if not isinstance(child, ModelWrapper):
            found += units(child)
    return found


def is_sharded(model: nn.Module) -> bool:
    """Whether processes share the weights of a model."""
    return isinstance(model, FSDPModule)


def reshard(model: nn.Module) -> None:
    """Free gathered weights, so that the parameters of a model are shards.

    The root keeps its weights gathered after a pass until a backward pass ends. What reads or
    changes shards between passes calls this first: the next pass would take the old weights.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def shards_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of a model, tied ones once; sharded ones as DTensor, also after a pass."""
    reshard(model)
    return dict(model.named_parameters())


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Gather all weights of a model inside the context, in the compute type.

    Forward passes inside it need no other process, so that each may make as many as it wants. All
    ranks enter and leave it together. A model that is not sharded stays as it is.
    """
    shards = units(model)
    before = [_reshards(unit) for unit in shards]
    for unit in shards:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit, reshards in zip(shards, before, strict=True):
            unit.reshard()
            unit.set_reshard_after_forward(reshards, recurse=False)
            _forget_passes(unit)


def gathered_bytes(model: ModelWrapper, compute: torch.dtype) -> int:
    """Bytes of the weights that `gathered` holds in each process.

    Args:
        model: sharded.
        compute: type in which trained weights are gathered; frozen ones keep theirs.
    """
    reshard(model)
    return sum(
        param.numel() * (compute if param.requires_grad else param.dtype).itemsize
        for param in model.model.parameters()
        if isinstance(param, DTensor)
    )


def _forget_passes(unit: FSDPModule) -> None:
    """Forget the passes since the last backward pass, which ranks made in different numbers.

    FSDP2 gathers weights ahead in the reverse order of the passes, and has no public way to forget.
    """
    state = unit._get_fsdp_state()
    getattr(state._comm_ctx, "post_forward_order", []).clear()  # missing before the first pass
    for group in state._fsdp_param_groups:
        group._post_forward_indices.clear()


def _reshards(unit: FSDPModule) -> bool:
    """Whether a unit frees its gathered weights after a forward pass; FSDP2 has no public way."""
    groups = unit._get_fsdp_state()._fsdp_param_groups
    return any(group.post_forward_mesh_info is not None for group in groups)


def local_tensor(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; shares memory with it."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def copy_shards(target: nn.Module, source: nn.Module) -> None:
    """Copy the parameters of a model to those of another that is sharded alike, part by part.

    Args:
        target: gets the values, in its own types.
        source: has the same parameters.

    Raises:
        ValueError: the parameters differ in name or in shape.
    """
    own, values = shards_of(target), shards_of(source)
    differing = own.keys() ^ values.keys() or {n for n in own if own[n].shape != values[n].shape}
    if differing:
        raise ValueError(f"parameters differ: {sorted(differing)[:3]}")
    with torch.no_grad():
        for name, param in own.items():
            local_tensor(param).copy_(local_tensor(values[name]))


def layout_of(tensor: Tensor, *, writes: bool = True) -> ShardLayout:
    """Where the part that this process holds lies in the whole tensor.

    Args:
        tensor: a parameter.
        writes: whether this process saves tensors that are not sharded.
    """
    if not isinstance(tensor, DTensor):
        return whole(tensor, writes=writes)
    mesh = tensor.device_mesh
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, tensor.placements)
    names = mesh.mesh_dim_names or ()
    first = REPLICATE not in names or mesh.get_local_rank(REPLICATE) == 0
    return ShardLayout(tuple(tensor.shape), offset[0], shape[0], writes=first)


def gather_whole(tensor: Tensor, own: Tensor) -> Tensor:
    """Gather a tensor from all processes, which call this together.

    Args:
        tensor: a parameter.
        own: values of the part that this process holds.
    """
    if not isinstance(tensor, DTensor):
        return own
    shape, stride = tensor.shape, tensor.stride()
    mesh, placements = tensor.device_mesh, tensor.placements
    part = DTensor.from_local(own, mesh, placements, run_check=False, shape=shape, stride=stride)
    return part.full_tensor()
