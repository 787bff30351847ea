"""Models that a command holds: bytes of frozen weights and numbers of trained parameters."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from rlhf_cli.memory.headers import TensorShape
from rlhf_cli.memory.model_files import read_shape
from rlhf_cli.memory.shape import ModelShape, kind_of
from rlhf_cli.models.config import AdapterConfig, ModelConfig, QuantConfig

NF4_BLOCK, NF4_NESTED_BLOCK = 64, 256
"""Values that share a scale, and scales that share one of their own (double quantization)."""


@dataclass(frozen=True)
class HeldModel:
    """A model in memory.

    Attributes:
        role: `policy`, `reference`, `value` or `reward`.
        shape: of its base.
        trained: number of trained parameters.
        frozen_bytes: of weights that are not trained, in their types.
        adapter: number of parameters of the adapter that is trained; 0 in full training.
        dora: whether the adapter has magnitudes, whose products are kept for the backward pass.
        targets: matrices that the trained adapter is on.
        rank: of the trained adapter.
        quantized: whether its linear layers are quantized.
        own_base: whether its base is its own, not that of the policy.
    """

    role: str
    shape: ModelShape
    trained: int = 0
    frozen_bytes: int = 0
    adapter: int = 0
    dora: bool = False
    targets: tuple[TensorShape, ...] = ()
    rank: int = 0
    quantized: bool = False
    own_base: bool = True

    @property
    def trains_base(self) -> bool:
        """Whether the weights themselves are trained."""
        return self.trained > 0 and not self.adapter

    @cached_property
    def target_names(self) -> frozenset[str]:
        """Last parts of the names of the adapted matrices, as `q_proj`."""
        return frozenset(module_name(tensor).rpartition(".")[2] for tensor in self.targets)


def module_name(tensor: TensorShape) -> str:
    """Name of the layer that a weight belongs to."""
    return tensor.name.removesuffix(".weight")


def weight_bytes(
    shape: ModelShape, itemsize: int, quant: str, *, double: bool, output: bool
) -> int:
    """Bytes of frozen weights in a compute type of `itemsize` bytes, or quantized.

    Args:
        shape: of the model.
        itemsize: of the compute type.
        quant: `none`, `nf4` or `int8`; applies to linear layers.
        double: whether the scales of 4-bit weights are quantized too.
        output: whether the output layer is quantized.
    """
    return sum(_tensor_bytes(t, itemsize, quant, double, output) for t in shape.tensors)


def _tensor_bytes(
    tensor: TensorShape, itemsize: int, quant: str, double: bool, output: bool
) -> int:
    kind = kind_of(tensor)
    quantized = kind == "linear" and not is_expert(tensor)
    if quant == "none" or not (quantized or (kind == "output" and output)):
        return tensor.count * itemsize
    if quant == "int8":  # one fp32 scale an output
        return tensor.count + 4 * tensor.shape[0]
    blocks = tensor.count / NF4_BLOCK
    scales = blocks * (1 + 4 / NF4_NESTED_BLOCK) if double else 4 * blocks
    return int(tensor.count / 2 + scales)


def is_expert(tensor: TensorShape) -> bool:
    """Return whether a matrix belongs to experts, which are held as one tensor a layer."""
    return ".experts." in tensor.name or len(tensor.shape) == 3


def adapter_targets(shape: ModelShape, cfg: AdapterConfig) -> tuple[TensorShape, ...]:
    """List the matrices that a new adapter is put on."""
    names = [cfg.targets] if isinstance(cfg.targets, str) else list(cfg.targets)
    if names == ["all-linear"]:
        plain = cfg.kind == "dora" or cfg.dropout > 0
        return tuple(t for t in shape.matrices if not (plain and is_expert(t)) and not _router(t))
    return tuple(t for t in shape.tensors if len(t.shape) > 1 and _is_named(module_name(t), names))


def _router(tensor: TensorShape) -> bool:
    return module_name(tensor).endswith(("mlp.gate", "block_sparse_moe.gate"))


def _is_named(name: str, names: Sequence[str]) -> bool:
    return any(name == one or name.endswith(f".{one}") for one in names)


def lora_parameters(tensor: TensorShape, rank: int, *, dora: bool = False) -> int:
    """Number of parameters of an adapter on one matrix, or on the matrices of all experts."""
    *experts, rows, columns = tensor.shape
    count = experts[0] if experts else 1
    return count * (rank * (rows + columns) + (rows if dora else 0))


def count_adapter(shape: ModelShape, cfg: AdapterConfig, targets: Sequence[TensorShape]) -> int:
    """Number of parameters of a new adapter, with the layers that are trained fully beside it."""
    dora = cfg.kind == "dora"
    matrices = sum(lora_parameters(t, cfg.rank, dora=dora) for t in targets)
    whole = sum(t.count for t in shape.tensors if _is_within(module_name(t), cfg.modules_to_save))
    head = sum(t.count for t in shape.tensors if kind_of(t) == "score")
    return matrices + whole + head


def _is_within(name: str, modules: Sequence[str]) -> bool:
    """Whether a layer is one of the modules, or in one."""
    return any(f".{module}." in f".{name}." for module in modules)


def trained_model(cfg: Any, role: str, itemsize: int, new_tokens: int = 0) -> HeldModel:
    """Describe the model that a stage trains.

    Args:
        cfg: config of the stage: `model`, `adapter`, `quant`.
        role: its name in the table.
        itemsize: bytes of the compute type.
        new_tokens: tokens whose rows of the embeddings are trained beside an adapter.
    """
    shape = read_shape(cfg.model)
    if cfg.scores:
        shape = shape.as_reward_model()
    adapter, quant = cfg.adapter, cfg.quant
    keeps = bool(shape.adapters) and adapter.start != "merge"
    if adapter.kind == "none" and not keeps:
        return _fully_trained(cfg, role, shape, itemsize)
    kind = quant.kind if quant.kind != "auto" else (shape.quant if keeps else "none")
    frozen = weight_bytes(
        shape, itemsize, kind, double=quant.double, output=quant.output_layer and not cfg.scores
    )
    held = HeldModel(role, shape, frozen_bytes=frozen, quantized=kind != "none")
    if adapter.kind == "none" or (keeps and adapter.start == "continue"):
        return _with_saved_adapter(held)
    frozen += sum(t.count for t in shape.adapters) * itemsize if keeps else 0
    targets = adapter_targets(shape, adapter)
    rows = new_tokens * shape.width * (1 if shape.tied or cfg.scores else 2)
    count = count_adapter(shape, adapter, targets) + rows
    return replace(
        held,
        frozen_bytes=frozen,
        trained=count,
        adapter=count,
        dora=adapter.kind == "dora",
        targets=targets,
        rank=adapter.rank,
    )


def _fully_trained(cfg: Any, role: str, shape: ModelShape, itemsize: int) -> HeldModel:
    names = getattr(cfg.model, "freeze", [])
    frozen = sum(
        t.count for t in shape.tensors if kind_of(t) == "other" or _is_within(module_name(t), names)
    )
    whole = sum(t.count for t in shape.tensors)
    return HeldModel(role, shape, trained=whole - frozen, frozen_bytes=frozen * itemsize)


def _with_saved_adapter(held: HeldModel) -> HeldModel:
    """The model with the adapter that it comes with, which is trained further."""
    tensors = held.shape.adapters
    last = [t for t in tensors if "lora_A" in t.name]
    count = sum(t.count for t in tensors)
    names = {re_target(t.name) for t in last}
    targets = tuple(t for t in held.shape.matrices if module_name(t).endswith(tuple(names)))
    rank = last[-1].shape[0] if last else 0
    return replace(
        held,
        trained=count,
        adapter=count,
        targets=targets,
        rank=rank,
        dora=any("lora_magnitude" in t.name for t in tensors),
    )


def re_target(name: str) -> str:
    """Name of the layer that a saved adapter's matrix is on."""
    return name.partition(".lora_")[0].removeprefix("base_model.model.")


def frozen_model(
    cfg: ModelConfig, role: str, itemsize: int, key: str, quant: QuantConfig | None = None
) -> HeldModel:
    """Describe a model that is only evaluated, in the compute type.

    Args:
        cfg: of the model.
        role: its name in the table.
        itemsize: bytes of the compute type.
        key: config key of its path.
        quant: quantization of its base; by default that of the adapter at its path.
    """
    shape = read_shape(cfg, key)
    kind = quant.kind if quant is not None and quant.kind != "auto" else shape.quant
    double = quant.double if quant is not None else True
    output = quant.output_layer if quant is not None else False
    size = weight_bytes(shape, itemsize, kind, double=double, output=output)
    size += sum(t.count for t in shape.adapters) * itemsize
    return HeldModel(role, shape, frozen_bytes=size, quantized=kind != "none")


def same_base(policy: ModelShape, other: ModelShape) -> bool:
    """Return whether a model is one adapter on the base of a policy, which it then shares."""
    return bool(other.adapters and policy.stored) and other.tensors == policy.tensors
