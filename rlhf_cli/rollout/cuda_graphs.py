"""CUDA graphs of decoding steps without new prompts, one per width of the KV cache.

A step of a few responses launches hundreds of kernels that each take less time than their launch; a
replayed CUDA graph launches them all at once. It runs the same kernels on the same memory, so
shapes and addresses must stay: the batch is filled up to all slots, and inputs are copied into
place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlhf_cli.errors import ConfigError
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.response import Response
from rlhf_cli.rollout.slot_cache import CacheWrites, DecodeModel, DecodeStep

StaticFunction = Callable[[], Tensor]
"""Computes from tensors whose memory does not change."""

Recorder = Callable[[StaticFunction], StaticFunction]
"""Runs a function and returns one that replays its kernels, without running its Python."""


def require_cuda(sampling: SamplingConfig, device: torch.device) -> None:
    """Refuse CUDA graphs on another device.

    Raises:
        ConfigError: `sampling.cuda_graphs` is set, and the device is not CUDA.
    """
    if sampling.cuda_graphs and device.type != "cuda":
        raise ConfigError(
            f"sampling.cuda_graphs: got true, and this runs on {device.type}; need a GPU with CUDA."
            " Try sampling.cuda_graphs=false"
        )


def capture(function: StaticFunction) -> StaticFunction:
    """Capture a function as a CUDA graph; a `Recorder`."""
    side, own = torch.cuda.Stream(), torch.cuda.current_stream()
    side.wait_stream(own)
    with torch.cuda.stream(side):
        function()  # libraries choose kernels and allocate workspaces, not allowed in a capture
    own.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = function()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


class StaticDecodeStep:
    """Decoding step of active responses, always with as many rows as there are slots.

    Rows beyond the active responses are computed and ignored. They write into an unused slot, so
    that a slot without a response keeps the prompt that the scheduler knows in it.

    A recording reads weights where they were when it was made, and training may move them. So it is
    used for the responses of one call only.

    Args:
        forward: its cache has one slot more than there are responses.
        recorder: records the step.
    """

    def __init__(self, forward: DecodeModel, recorder: Recorder) -> None:
        self._forward, self._recorder = forward, recorder
        self._rows = forward.cache.slots - 1
        self._inputs = torch.zeros(3, self._rows, dtype=torch.long, device=forward.device)
        self._replays: dict[int, StaticFunction] = {}

    def __call__(self, active: Sequence[Response]) -> Tensor:
        """[R, d]: hidden states of the last tokens; valid until the next call."""
        idle = self._rows - len(active)
        tokens = [response.last_token for response in active] + [0] * idle
        positions = [response.last_position for response in active] + [0] * idle
        slots = [*range(len(active)), *[self._rows] * idle]
        self._inputs.copy_(torch.tensor([tokens, positions, slots]), non_blocking=True)
        width = self._forward.cache.width
        if width not in self._replays:
            self._replays[width] = self._recorder(self._run)
        return self._replays[width]()[: len(active)]

    def _run(self) -> Tensor:
        tokens, positions, slots = self._inputs.unbind()
        writes = CacheWrites(slots, positions, None)
        step = DecodeStep(self._forward.cache, positions, (), writes)
        return self._forward(tokens, positions, step)
