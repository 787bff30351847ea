"""`StoredTensor`: a weight that is still in its file, in the place of a tensor.

transformers and PEFT rename, stack, split, cast and copy weights by code of their own for each
architecture. They run here on tensors without memory, each of which carries the `Origin` of its
values, so that any rank can compute its own rows later. An operation that would change values in
place has no origin and is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from rlhf_cli.models.stored_origin import (
    Cast,
    Computed,
    InMemory,
    Joined,
    Origin,
    Picked,
    RowRange,
    Stacked,
    blocks,
    fill_rows,
)

SAME = {"detach", "contiguous", "clone", "cpu", "cuda", "alias"}
"""Functions whose result has the same values."""

CASTS = {
    "to": None,
    "type": None,
    "type_as": None,
    "double": torch.float64,
    "float": torch.float32,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
}
"""Functions that change the type or the device alone, and their types where they name one."""

KEEPS_VALUES = {"requires_grad_", "share_memory_", "retain_grad", "__set__"}
"""Functions that change a tensor but not its values."""

IN_PLACE = {"__setitem__", "__imul__", "__itruediv__"}
"""Functions that change values in place, beside those whose names end with `_`."""

SUMS = {"__iadd__": Tensor.add, "add_": Tensor.add, "__isub__": Tensor.sub, "sub_": Tensor.sub}
"""Functions that change a tensor in place and are recorded: PEFT merges by `weight.data += d`."""


class StoredTensor(Tensor):
    """A tensor on the meta device that knows where its values come from.

    Attributes:
        origin: computes the values.
        target_device: device that the values will be on; the tensor's `device` is this one.
        owner: the tensor whose `data` this is, and which changes with it; else none.
    """

    origin: Origin
    target_device: torch.device
    owner: StoredTensor | None = None

    @staticmethod
    def of(origin: Origin, target_device: torch.device) -> StoredTensor:
        """Make the stand-in for an origin's tensor."""
        meta = torch.empty(origin.shape, dtype=origin.dtype, device="meta")
        found = meta.as_subclass(StoredTensor)
        found.origin, found.target_device = origin, target_device
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> StoredTensor:
        """Copy the stand-in; both have the same values until one is trained."""
        found: Any = StoredTensor.of(self.origin, self.target_device)
        if isinstance(self, nn.Parameter):
            found = nn.Parameter(found, requires_grad=self.requires_grad)
        memo[id(self)] = found
        return cast(StoredTensor, found)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a function of torch without values, and record it as the origin of its result."""
        kwargs = dict(kwargs or {})
        name = func.__name__
        attribute = getattr(getattr(func, "__self__", None), "__name__", "")
        if name == "__get__":
            return _attribute(func, attribute, args)
        if name == "__set__" and attribute == "data":
            return _set_data(*args)
        if name == "equal":
            return _equal(*args)
        if name in SUMS:
            return _become(args[0], SUMS[name](*args, **kwargs))
        in_place = name in IN_PLACE or (name.endswith("_") and not name.endswith("__"))
        if in_place and name not in KEEPS_VALUES:
            raise RuntimeError(f"{name} would change a weight that has not been read yet")
        if name in CASTS:
            return _cast(args, kwargs, CASTS[name])
        result = _without_values(func, args, kwargs)
        if name in KEEPS_VALUES:
            return args[0] if isinstance(result, Tensor) else result
        return _wrapped(func, name, args, kwargs, result)


def _without_values(func: Any, args: Any, kwargs: Any) -> Any:
    """Run a function on the meta device, for the shape and type of its result."""
    with torch._C.DisableTorchFunctionSubclass():

        def plain(value: Any) -> Any:
            if isinstance(value, StoredTensor):
                return value
            # a mask decides the shape
            is_values = isinstance(value, Tensor) and value.dtype != torch.bool
            return value.detach().to("meta") if is_values else value

        args, kwargs = tree_map(plain, (args, kwargs))
        return func(*args, **{key: value for key, value in kwargs.items() if key != "device"})


def _attribute(func: Any, attribute: str, args: Any) -> Any:
    """Read an attribute; the device is the one where the values will be."""
    stored = args[0]
    if attribute == "device":
        return stored.target_device
    if attribute == "is_meta":
        return False
    with torch._C.DisableTorchFunctionSubclass():
        found = func(*args)
    if attribute == "data":
        data = StoredTensor.of(stored.origin, stored.target_device)
        data.owner = stored
        return data
    if attribute in ("T", "mT"):
        return stored.transpose(-2, -1)
    return found


def _become(target: Any, result: Tensor) -> Tensor:
    """Give a tensor, and the one whose data it is, the values of a result."""
    stored = isinstance(target, StoredTensor) and isinstance(result, StoredTensor)
    if not stored or result.dtype != target.dtype:
        raise RuntimeError("a weight that has not been read yet cannot be added to this tensor")
    changed, origin = target, origin_of(result)
    while changed is not None:
        changed.origin, changed = origin, changed.owner
    return cast(Tensor, target)


def _set_data(target: Tensor, value: Tensor) -> None:
    """Set `target.data`, where either of the two has no values yet."""
    if not isinstance(value, StoredTensor) or not isinstance(target, StoredTensor):
        raise RuntimeError("a tensor and a weight that has not been read yet cannot be exchanged")
    with torch._C.DisableTorchFunctionSubclass():
        target.data = torch.empty(value.shape, dtype=value.dtype, device="meta")
    target.origin, target.target_device = value.origin, value.target_device


def _equal(one: Any, other: Any) -> bool:
    """Compare the values of two tensors, block by block."""
    first, second = origin_of(one), origin_of(other)
    if first.shape != second.shape:
        return False
    return all(
        torch.equal(first.rows(low, high), second.rows(low, high))
        for low, high in blocks(first.shape, first.dtype)
    )


def _cast(args: Any, kwargs: Any, dtype: torch.dtype | None) -> Any:
    """Change type and device; the type is that of the result on the meta device."""
    stored, *others = args
    values = [*others, *kwargs.values()]
    if not isinstance(stored, StoredTensor):  # a tensor that is cast as a stored one
        model = next(value for value in values if isinstance(value, StoredTensor))
        return stored.to(model.target_device, model.dtype)
    named = [dtype] if dtype else [v for v in values if isinstance(v, torch.dtype)]
    named += [v.dtype for v in values if isinstance(v, Tensor)]
    places = [torch.device(v) for v in values if isinstance(v, str | torch.device)]
    places += [v.device for v in values if isinstance(v, Tensor)]
    target = places[0] if places else stored.target_device
    origin = stored.origin
    if named and named[0] != origin.dtype:
        origin = Cast(origin.shape, named[0], origin)
    return StoredTensor.of(origin, target)


def origin_of(value: Tensor) -> Origin:
    """Return where the values of a tensor come from; they may be in memory."""
    if isinstance(value, StoredTensor):
        return value.origin
    return InMemory(tuple(value.shape), value.dtype, value.detach())


def _wrapped(func: Any, name: str, args: Any, kwargs: Any, result: Any) -> Any:
    """Give each tensor of a result its origin."""
    target = next(v.target_device for v in _tensors(args, kwargs) if isinstance(v, StoredTensor))
    if isinstance(result, Tensor):
        return StoredTensor.of(_origin(func, name, args, kwargs, result, None), target)
    if isinstance(result, tuple | list) and any(isinstance(part, Tensor) for part in result):
        first, found = 0, []
        for index, part in enumerate(result):
            origin = _origin(func, name, args, kwargs, part, index)
            if name in ("chunk", "split") and _dim(args, kwargs, 2) == 0:
                origin = RowRange(origin.shape, origin.dtype, origin_of(args[0]), first)
                first += part.shape[0]
            found.append(StoredTensor.of(origin, target))
        return type(result)(found) if isinstance(result, list) else tuple(found)
    return result


def _tensors(args: Any, kwargs: Any) -> list[Tensor]:
    return [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]


def _dim(args: Any, kwargs: Any, position: int) -> int:
    """Read the dimension that a function works on; 0 by default, as torch's."""
    return int(kwargs.get("dim", args[position] if len(args) > position else 0))


def _origin(
    func: Any, name: str, args: Any, kwargs: Any, result: Tensor, index: int | None
) -> Origin:
    """Build the origin of one result: of its rows where they can be computed alone."""
    shape, dtype = tuple(result.shape), result.dtype
    if name in SAME or (name == "__getitem__" and args[1] is Ellipsis):
        return origin_of(args[0])
    if name == "__getitem__" and isinstance(args[1], list) and origin_of(args[0]).by_rows:
        return Picked(shape, dtype, origin_of(args[0]), tuple(args[1]))
    if name == "stack" and _dim(args, kwargs, 1) == 0:
        return Stacked(shape, dtype, [origin_of(part) for part in args[0]])
    if name in ("cat", "concat") and _dim(args, kwargs, 1) == 0:
        return Joined(shape, dtype, [origin_of(part) for part in args[0]])
    plain_args, plain_kwargs = tree_map(
        lambda value: origin_of(value) if isinstance(value, Tensor) else value, (args, kwargs)
    )
    each = _keeps_rows(name, args, kwargs)
    return Computed(shape, dtype, func, plain_args, plain_kwargs, index, each)


def _keeps_rows(name: str, args: Any, kwargs: Any) -> bool:
    """Return whether a row of a result depends on the same row of each tensor alone."""
    if name in ("cat", "concat"):
        return _dim(args, kwargs, 1) > 0
    if name in ("chunk", "split"):
        return _dim(args, kwargs, 2) > 0
    if name == "transpose":
        return all(dim > 0 for dim in args[1:3]) and len(args) > 2
    return False


def defer(module: nn.Module, device: torch.device) -> None:
    """Leave the parameters of a module in host memory, in the place of tensors on a device.

    Args:
        module: on the CPU; changed in place.
        device: that they are said to be on.
    """
    found = {
        id(param): parameter(param, StoredTensor.of(origin_of(param.data), device))
        for param in module.parameters()
    }
    replace_parameters(module, found)


def hold(module: nn.Module) -> dict[str, Origin]:
    """Replace stored tensors by plain ones on the meta device, whose origins are returned.

    Parameters that are one stay one. Buffers are small, and are read.

    Returns:
        Name of each parameter without values -> its origin; a tied one has its first name.
    """
    for owner in module.modules():
        for name, buffer in owner._buffers.items():
            if isinstance(buffer, StoredTensor):
                owner._buffers[name] = read(buffer)
    found, origins = {}, {}
    for name, param in module.named_parameters():
        if isinstance(param, StoredTensor):
            origin = origins[name] = param.origin
            meta = torch.empty(origin.shape, dtype=origin.dtype, device="meta")
            found[id(param)] = parameter(param, meta)
    replace_parameters(module, found)
    return origins


def replace_parameters(module: nn.Module, found: Mapping[int, nn.Parameter]) -> None:
    """Replace parameters wherever a module uses them: id of the old -> the new."""
    for owner in module.modules():
        for name, param in owner._parameters.items():
            if id(param) in found:
                owner._parameters[name] = found[id(param)]


def parameter(like: nn.Parameter, values: Tensor) -> nn.Parameter:
    """Make a parameter as another is, with what libraries have written on it."""
    made = nn.Parameter(values, requires_grad=like.requires_grad)
    own = ("origin", "target_device", "owner", "_is_param")
    for name, value in vars(like).items():
        if name not in own:
            setattr(made, name, value)
    return made


def read(tensor: Tensor) -> Tensor:
    """Return a tensor with its values in memory, on its device; itself where it has them."""
    if not isinstance(tensor, StoredTensor):
        return tensor
    origin = tensor.origin
    if not origin.by_rows:
        return origin.whole().to(tensor.target_device, copy=True)
    values = torch.empty(origin.shape, dtype=origin.dtype, device=tensor.target_device)
    fill_rows(values, origin, 0)
    return values


def read_parameters(
    module: nn.Module, is_read: Callable[[str, nn.Parameter], bool] = lambda *_: True
) -> None:
    """Read the parameters that a function selects, whole, onto their device.

    Args:
        module: changed in place.
        is_read: name and parameter -> whether it is read; by default every one is.
    """
    found = {
        id(param): parameter(param, read(param))
        for name, param in module.named_parameters()
        if isinstance(param, StoredTensor) and is_read(name, param)
    }
    replace_parameters(module, found)
