"""Memory of generating responses: the KV cache, and a decoding step."""

from typing import Any

from rlhf_cli.memory import activations
from rlhf_cli.memory.activations import Pass
from rlhf_cli.memory.parts import Parts, Rows
from rlhf_cli.memory.shape import ModelShape
from rlhf_cli.memory.weights import HeldModel

WIDTH_STEP = 32
"""The cache's width is a multiple of this; see `rollout/slot_cache.py`."""

PREFILL_TOKENS = 8192
"""No further prompt joins a pass that already has this many; see `continuous_batching.py`."""

DEFAULT_SLOTS = 64
"""Responses decoded at once; see `rollout/engine.py`."""


def slots_of(cfg: Any, processes: int) -> int:
    """Responses of a step that are decoded at once by one process."""
    responses = -(-cfg.train.batch_size * cfg.samples_per_prompt // processes)
    return int(min(cfg.max_num_seqs or DEFAULT_SLOTS, responses))


def longest_response(cfg: Any, rows: Rows) -> int:
    """Tokens of the longest prompt and response together."""
    new = int(cfg.sampling.max_new_tokens)
    return (rows.longest_prompt or max(1, rows.longest - new)) + new


def cache_bytes(shape: ModelShape, itemsize: int, slots: int, length: int) -> int:
    """Bytes of the keys and values of all slots, each as long as the longest response.

    2 L K e b a token: 12,288 for 24 layers of 2 heads of 64 in bf16.
    """
    width = -(-length // WIDTH_STEP) * WIDTH_STEP
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * itemsize * slots * width


def decode_parts(model: HeldModel, itemsize: int, slots: int, length: int, kind: str) -> Parts:
    """Bytes of the cache, of a pass over new prompts, and of the logits of a step."""
    shape = model.shape
    prompts = min(PREFILL_TOKENS + length, slots * length)
    forward = Pass(itemsize, kind if kind == "cuda" else "cpu", prompts, length, slots)
    return {
        "KV cache": cache_bytes(shape, itemsize, slots, length),
        "activations": activations.transient_bytes(model, forward),
        # in the compute type and in fp32
        "logits": slots * shape.vocab * (itemsize + 4),
    }
