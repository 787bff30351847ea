"""A stand-in for a CUDA device: finds device faults on machines that have no GPU.

Tensors stay on the CPU. Where a tensor is said to lie is a mark on its storage, so views, `detach`,
`.data` and parameters carry it. Two modes read the marks:

- A function mode takes `device="cuda"` from calls, moves tensors, and answers `.device`.
- A dispatch mode refuses operations that mix devices as CUDA refuses them, marks what operations
  give, and counts what makes the host wait for the device.

It knows nothing of kernels (Triton, flash attention, NCCL), memory, streams or speed.
"""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.attention.bias import CausalBias
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from rlhf_cli.memory.phase import RECORD

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")

_aten = torch.ops.aten
_SYNCHRONIZING = {
    _aten._local_scalar_dense.default,
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten.equal.default,
    _aten.bincount.default,
    _aten._unique2.default,
    _aten.unique_consecutive.default,
    _aten.unique_dim.default,
}
_INDEXING = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
    _aten._unsafe_index.Tensor,
}
_SCALAR_FILLS = {
    _aten.fill_.Tensor,
    _aten.fill.Tensor,
    _aten.masked_fill.Tensor,
    _aten.masked_fill_.Tensor,
}
_COPIES = {_aten.copy_.default, _aten.copy.default}


class MixedDevices(AssertionError):
    """An operation that CUDA would refuse: some of its tensors are on the device, some are not."""


def on_cuda(tensor: Tensor) -> bool:
    """Whether a tensor is said to lie on the device."""
    try:
        return getattr(tensor.untyped_storage(), "on_fake_cuda", False)
    except (NotImplementedError, RuntimeError):  # no storage: meta, sparse
        return False


def _mark(result: Any, cuda: bool = True) -> Any:
    with torch._C.DisableTorchFunction():
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type == "cpu":
                leaf.untyped_storage().on_fake_cuda = cuda
    return result


def _tensors(*trees: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(trees) if isinstance(leaf, Tensor)]


class FakeCuda:
    """The state that both modes share.

    Attributes:
        waits: how often the host waited for the device, by the line of our package that asked.
    """

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self._local = threading.local()
        self.functions, self.dispatch = _Functions(self), _Dispatch(self)

    @property
    def callers(self) -> list[bool]:
        """Whether the Python functions that run now were given tensors of the device."""
        return vars(self._local).setdefault("callers", [])

    @contextlib.contextmanager
    def calling(self, cuda: bool) -> Iterator[None]:
        """What C++ makes within has the device of the calling function."""
        self.callers.append(cuda)
        try:
            yield
        finally:
            self.callers.pop()

    @contextlib.contextmanager
    def unseen(self) -> Iterator[None]:
        """Neither refuse nor count nor mark."""
        before = vars(self._local).get("unseen", False)
        self._local.unseen = True
        try:
            yield
        finally:
            self._local.unseen = before

    @property
    def sees(self) -> bool:
        """Whether operations are watched now."""
        return not vars(self._local).get("unseen", False)

    def wait(self) -> None:
        """Count a wait, under the innermost line of the package that led to it."""
        own = [f for f in traceback.extract_stack() if "/rlhf_cli/" in f.filename]
        where = own[-1] if own else traceback.extract_stack()[-2]
        self.waits[f"{where.filename.rpartition('rlhf_cli/')[2]}:{where.lineno}"] += 1

    def move(self, tensor: Tensor, cuda: bool, *, non_blocking: bool = False) -> Tensor:
        """A copy on the other device; the tensor itself where it lies there already."""
        if on_cuda(tensor) == cuda or tensor.device.type == "meta":
            return tensor
        if not (cuda and non_blocking):
            self.wait()
        with self.unseen():
            return _Move.apply(tensor, cuda)

    @contextlib.contextmanager
    def active(self) -> Iterator[FakeCuda]:
        """Let this thread compute under the stand-in."""
        with self.dispatch, self.functions:
            yield self


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, cuda: bool) -> Tensor:
        ctx.cuda = cuda
        return _mark(tensor.clone(), cuda)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _mark(grad.clone(), not ctx.cuda), None


class _Functions(TorchFunctionMode):
    def __init__(self, fake: FakeCuda) -> None:
        super().__init__()
        self.fake = fake

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        special = _SPECIAL.get(func)
        if special is not None:
            return special(self.fake, func, *args, **kwargs)
        device = kwargs.get("device")
        wanted = None if device is None else torch.device(device).type
        if wanted == "cuda":
            kwargs["device"] = CPU
        cuda = any(map(on_cuda, _tensors(args, kwargs))) if wanted is None else wanted == "cuda"
        with self.fake.calling(cuda):
            result = func(*args, **kwargs)
        if wanted == "cuda":
            if func is torch.tensor:
                self.fake.wait()  # made on the CPU, then copied
            _mark(result)
        return result


class _Dispatch(TorchDispatchMode):
    def __init__(self, fake: FakeCuda) -> None:
        super().__init__()
        self.fake = fake

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        with torch._C.DisableTorchFunction():
            return self._run(func, args, kwargs or {})

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.fake.sees:
            return func(*args, **kwargs)
        tensors = [t for t in _tensors(args, kwargs) if t.device.type == "cpu"]
        marks = [on_cuda(tensor) for tensor in tensors]
        cuda = any(marks) if tensors else bool(self.fake.callers and self.fake.callers[-1])
        if func in _COPIES:
            self._copy(marks, args, kwargs)
            cuda = marks[0]
        elif func in _INDEXING and marks[0]:
            self._index(func, args)
        elif cuda and not all(marks) and tensors:
            _refuse(func, tensors, marks)
        if cuda:
            self._count(func, args, kwargs)
            generators = [a for a in tree_leaves((args, kwargs)) if type(a) is torch.Generator]
            if generators:
                raise MixedDevices(f"{func}: a CPU generator for tensors of the device")
        result = func(*args, **kwargs)
        return _mark(result) if cuda else result

    def _copy(self, marks: list[bool], args: tuple[Any, ...], kwargs: Any) -> None:
        target, source = marks
        non_blocking = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
        if target != source and not (target and non_blocking):
            self.fake.wait()

    def _index(self, func: Any, args: tuple[Any, ...]) -> None:
        indices = [index for index in args[1] if isinstance(index, Tensor)]
        values = args[2] if len(args) > 2 and isinstance(args[2], Tensor) else None
        if values is not None and values.ndim and not on_cuda(values):
            raise MixedDevices(f"{func}: values on the CPU for a tensor of the device")
        boolean = [index for index in indices if index.dtype in (torch.bool, torch.uint8)]
        filled = values is not None and values.numel() == 1 and len(boolean) == len(indices)
        if (boolean and not filled) or not all(map(on_cuda, indices)):
            self.fake.wait()

    def _count(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> None:
        if func in _SYNCHRONIZING:
            self.fake.wait()
        if func is _aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
            self.fake.wait()


def _refuse(func: Any, tensors: list[Tensor], marks: list[bool]) -> None:
    """Fail, unless all that is not on the device is a scalar in a pointwise operation."""
    outside = [tensor for tensor, cuda in zip(tensors, marks, strict=True) if not cuda]
    pointwise = torch.Tag.pointwise in func.tags or func in _SCALAR_FILLS or "foreach" in str(func)
    written = func._schema.is_mutable and not marks[0]
    if not pointwise or written or any(tensor.ndim for tensor in outside):
        shapes = [
            f"{list(t.shape)} on {'cuda' if c else 'cpu'}"
            for t, c in zip(tensors, marks, strict=True)
        ]
        raise MixedDevices(f"{func}: {', '.join(shapes)}")


def _to(fake: FakeCuda, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    given = [*args, *kwargs.values()]
    device = next((g for g in given if isinstance(g, str | torch.device)), None)
    other = next((g for g in given if isinstance(g, Tensor)), None)
    device = device if other is None else other.device
    dtype = next((g for g in given if isinstance(g, torch.dtype)), other and other.dtype)
    flags = [g for g in args if isinstance(g, bool)]
    non_blocking = kwargs.get("non_blocking", bool(flags and flags[0]))
    if device is not None and torch.device(device).type == "meta":
        return func(tensor, *args, **kwargs)
    if device is not None:
        cuda = torch.device(device).type == "cuda"
        tensor = fake.move(tensor, cuda, non_blocking=non_blocking)
    kept = {name: kwargs[name] for name in ("copy", "memory_format") if name in kwargs}
    with fake.calling(on_cuda(tensor)):
        return func(tensor, dtype, **kept) if dtype or kept else tensor


def _cuda(fake: FakeCuda, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return fake.move(tensor, True, non_blocking=kwargs.get("non_blocking", False))


def _cpu(fake: FakeCuda, func: Any, tensor: Tensor, **kwargs: Any) -> Tensor:
    return fake.move(tensor, False)


def _numpy(fake: FakeCuda, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
    if on_cuda(tensor):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")
    return func(tensor, *args, **kwargs)


def _tolist(fake: FakeCuda, func: Any, tensor: Tensor) -> Any:
    if on_cuda(tensor):
        fake.wait()
    with fake.unseen():
        return func(tensor)


def _device(fake: FakeCuda, func: Any, tensor: Tensor) -> torch.device:
    return CUDA if on_cuda(tensor) else func(tensor)


def _is_cuda(fake: FakeCuda, func: Any, tensor: Tensor) -> bool:
    return on_cuda(tensor)


def _is_cpu(fake: FakeCuda, func: Any, tensor: Tensor) -> bool:
    return not on_cuda(tensor) and func(tensor)


def _get_device(fake: FakeCuda, func: Any, tensor: Tensor) -> int:
    return 0 if on_cuda(tensor) else -1


def _set_grad(fake: FakeCuda, func: Any, tensor: Tensor, grad: Tensor | None) -> None:
    if grad is not None and on_cuda(grad) != on_cuda(tensor):
        raise MixedDevices("grad: assigned from another device")
    func(tensor, grad)


def _same(fake: FakeCuda, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return tensor


_SPECIAL = {
    Tensor.to: _to,
    Tensor.cuda: _cuda,
    Tensor.cpu: _cpu,
    Tensor.numpy: _numpy,
    Tensor.__array__: _numpy,
    Tensor.tolist: _tolist,
    Tensor.pin_memory: _same,
    Tensor.device.__get__: _device,
    Tensor.is_cuda.__get__: _is_cuda,
    Tensor.is_cpu.__get__: _is_cpu,
    Tensor.get_device: _get_device,
    Tensor.grad.__set__: _set_grad,
}


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _runtime() -> dict[str, Any]:
    """Stand-ins for functions of `torch.cuda`."""
    properties = SimpleNamespace(
        name="stand-in", total_memory=2**35, major=9, minor=0, multi_processor_count=1
    )
    answers = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "a stand-in",
        "get_device_properties": properties,
        "get_device_capability": (9, 0),
        "is_bf16_supported": True,
        "max_memory_allocated": 2**20,
        "memory_allocated": 2**20,
        "mem_get_info": (2**35, 2**35),
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
    }
    calls = ("set_device", "synchronize", "reset_peak_memory_stats", "empty_cache", "_lazy_init",
             "set_rng_state", "manual_seed", "manual_seed_all")  # fmt: skip
    found: dict[str, Any] = dict.fromkeys(calls, _nothing)
    for name, answer in answers.items():
        found[name] = lambda *_, answer=answer, **__: answer
    return found


def require_alike(patch: Any) -> None:
    """Let a collective call fail where its tensor lies elsewhere on another rank.

    On a machine with GPUs one of the ranks would call gloo and the other NCCL, and both would wait
    for ever. Here there is gloo alone.
    """
    begin, gather = dist.init_process_group, dist.all_gather

    def agree(tensor: Tensor) -> None:
        own = torch.tensor([int(on_cuda(tensor))])
        every = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
        gather(every, own)
        if len({int(one) for one in every}) > 1:
            raise MixedDevices("a collective call: on the GPU on one rank, on the CPU on another")

    def checked(call: Any, place: int) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            agree(args[place])
            return call(*args, **kwargs)

        return run

    patch.setattr(dist, "init_process_group", lambda backend, **rest: begin("gloo", **rest))
    patch.setattr(dist, "all_reduce", checked(dist.all_reduce, 0))
    patch.setattr(dist, "all_gather", checked(dist.all_gather, 1))


@contextlib.contextmanager
def fake_cuda(patch: Any) -> Iterator[FakeCuda]:
    """Compute under the stand-in, in this thread and in those that it starts.

    Args:
        patch: pytest's `monkeypatch`.
    """
    import bitsandbytes  # noqa: F401  it looks for a device when it is imported

    fake = FakeCuda()
    for name, stand_in in _runtime().items():
        patch.setattr(torch.cuda, name, stand_in)
    engine, run = torch.autograd.graph._engine_run_backward, threading.Thread.run

    def run_backward(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        with fake.functions, fake.calling(any(map(on_cuda, _tensors(list(outputs))))):
            return engine(outputs, *args, **kwargs)

    def run_thread(thread: threading.Thread) -> None:
        with fake.active():
            run(thread)

    def new_bias(kind: Any, *_: Any) -> Tensor:
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            return Tensor._make_subclass(kind, torch.empty(0))

    def metadata(tensor: Tensor) -> dict[str, Any]:
        return {
            "shape": tensor.shape,
            "dtype": tensor.dtype,
        }  # the device hides where modes are off

    patch.setitem(checkpoint._allowed_determinism_checks_to_fns, "default", metadata)
    patch.setattr(CausalBias, "__new__", new_bias)
    patch.setattr(torch.autograd, "_engine_run_backward", run_backward)
    patch.setattr(torch.autograd.graph, "_engine_run_backward", run_backward)
    patch.setattr(threading.Thread, "run", run_thread)
    try:
        with fake.active():
            yield fake
    finally:
        RECORD.start()  # a run has let it measure the device that is not there
