"""Passes without new prompts, recorded once for each width of the cache and replayed.

A pass of a few rows launches hundreds of kernels that each take less time than their launch; a
replayed CUDA graph launches them all at once. It runs the same kernels on the same memory, so
shapes and addresses must stay: rows fill up to all slots, and inputs are copied into place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlhf_cli.errors import ConfigError
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.forward import Forward
from rlhf_cli.rollout.schedule import Row
from rlhf_cli.rollout.slots import Pass, Where

Run = Callable[[], Tensor]
"""Computes from tensors that stay where they are."""

Record = Callable[[Run], Run]
"""Gives what does the same again, without running any Python of it."""


def require_cuda(sampling: SamplingConfig, device: torch.device) -> None:
    """Refuse CUDA graphs on another device.

    Raises:
        ConfigError: they are asked for, and this is not CUDA.
    """
    if sampling.cuda_graphs and device.type != "cuda":
        raise ConfigError(
            f"sampling.cuda_graphs: got true, and this runs on {device.type}; need a GPU with CUDA."
            " Try sampling.cuda_graphs=false"
        )


def capture(run: Run) -> Run:
    """Record as a CUDA graph."""
    side, own = torch.cuda.Stream(), torch.cuda.current_stream()
    side.wait_stream(own)
    with torch.cuda.stream(side):
        run()  # libraries choose kernels and take workspaces, which must not happen in a capture
    own.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


class StaticStep:
    """The next token's pass of live rows alone, always with as many rows as there are slots.

    Rows beyond the live ones are computed and ignored. They write into a spare slot, so that a slot
    that no row is in keeps the prompt that the schedule knows in it.

    A recording reads weights where they were when it was made, and training may give them other
    memory. So it is used for the responses of one call, in which they stay.

    Args:
        forward: its cache has a slot more than there are rows.
        record: of a pass.
    """

    def __init__(self, forward: Forward, record: Record) -> None:
        self._forward, self._record = forward, record
        self._rows = forward.cache.slots - 1
        self._inputs = torch.zeros(3, self._rows, dtype=torch.long, device=forward.device)
        self._replays: dict[int, Run] = {}

    def __call__(self, live: Sequence[Row]) -> Tensor:
        """[R, d]: hidden states of the live rows' last tokens; good until the next call."""
        idle = self._rows - len(live)
        tokens = [row.last for row in live] + [0] * idle
        positions = [row.position for row in live] + [0] * idle
        slots = [*range(len(live)), *[self._rows] * idle]
        self._inputs.copy_(torch.tensor([tokens, positions, slots]), non_blocking=True)
        width = self._forward.cache.width
        if width not in self._replays:
            self._replays[width] = self._record(self._run)
        return self._replays[width]()[: len(live)]

    def _run(self) -> Tensor:
        tokens, positions, slots = self._inputs.unbind()
        step = Pass(self._forward.cache, positions, (), Where(slots, positions, None))
        return self._forward(tokens, positions, step)
