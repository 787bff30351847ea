"""A CUDA graph's stand-in on the CPU: operations recorded once, run again on the same memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlhf_cli.rollout.cuda_graphs import StaticFunction


class Tape(TorchDispatchMode):
    """Records every operation with its tensors; a replay runs none of the caller's Python."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        given = kwargs or {}
        output = func(*args, **given)
        self.steps.append((func, args, given, output))
        return output

    def replay(self) -> None:
        """Run all operations; each result goes where it was, of a view nowhere."""
        for func, args, kwargs, before in self.steps:
            after = func(*args, **kwargs)
            for old, new in zip(tree_leaves(before), tree_leaves(after), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def record(run: StaticFunction, made: Callable[[], object] = lambda: None) -> StaticFunction:
    """Like `cuda_graphs.capture`, which also runs once before it records."""
    made()
    run()
    with Tape() as tape:
        output = run()

    def replay() -> Tensor:
        tape.replay()
        return output

    return replay
