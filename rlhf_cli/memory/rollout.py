"""Memory of generating responses: the KV cache, and a decoding step."""

from typing import Any

from rlhf_cli.memory import activations
from rlhf_cli.memory.activations import Pass
from rlhf_cli.memory.shape import ModelShape
from rlhf_cli.memory.weights import HeldModel

WIDTH_STEP = 32
"""The cache's width is a multiple of this; see `rollout/slot_cache.py`."""

PREFILL_TOKENS = 8192
"""No further prompt joins a pass that already has this many; see `continuous_batching.py`."""

DEFAULT_SLOTS = 64
"""Responses decoded at once; see `rollout/engine.py`."""


def cache_bytes(shape: ModelShape, itemsize: int, slots: int, length: int) -> int:
    """Bytes of the keys and values of all slots, each as long as the longest response.

    2 L K e b a token: 12,288 for 24 layers of 2 heads of 64 in bf16.
    """
    width = -(-length // WIDTH_STEP) * WIDTH_STEP
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * itemsize * slots * width


def decode_parts(
    model: HeldModel, itemsize: int, slots: int, length: int, kind: str
) -> dict[str, int]:
    """Bytes of the cache, of a pass over new prompts, and of the logits of a step."""
    shape = model.shape
    prompts = min(PREFILL_TOKENS + length, slots * length)
    forward = Pass(itemsize, kind, prompts, length, slots)
    return {
        "KV cache": cache_bytes(shape, itemsize, slots, length),
        "activations": activations.transient_bytes(model, forward),
        # in the compute type, in fp32, and sums of blocks
        "logits": slots * shape.vocab * (itemsize + 4),
    }


def phases(run: Any, models: list[HeldModel], tokens: int) -> dict[str, dict[str, int]]:
    """Rollout and scores of PPO, beside all models."""
    cfg, policy = run.cfg, models[0]
    held = run.held(models, moments=True)
    longest = (run.rows.longest_prompt or run.rows.longest) + cfg.sampling.max_new_tokens
    slots = min(DEFAULT_SLOTS, -(-cfg.train.batch_size * cfg.samples_per_prompt // run.processes))
    decoded = decode_parts(policy, run.b, slots, longest, run.device.kind)
    found = {"rollout": held | decoded}
    forward = run.forward(tokens)
    found["prepare"] = {
        **held,
        "activations": activations.transient_bytes(policy, forward),
        "logits": activations.logits_bytes(policy.shape, forward, backward=False),
    }
    scorers = [model for model in models if model.role == "reward"]
    if scorers:
        most = max(activations.transient_bytes(model, forward) for model in scorers)
        found["score"] = {**held, "activations": most}
    return found
