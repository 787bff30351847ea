"""Bytes that a pass keeps, against those that autograd saves."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_cli.kernels.registry import choose
from rlhf_cli.memory import activations
from rlhf_cli.memory.activations import Pass
from rlhf_cli.memory.shape import shape_of
from rlhf_cli.memory.weights import HeldModel, adapter_targets
from rlhf_cli.models.attach_adapters import attach_adapters
from rlhf_cli.models.config import AdapterConfig
from rlhf_cli.models.load import disable_dropout
from rlhf_cli.models.parameters import cast_params
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.resolve import ModelSource
from tests.helpers import random_rows

CPU = torch.device("cpu")

TOLERANCE = 0.03
"""What the formulas leave out: a norm's scale a token, the router of experts, cumulative sums."""

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 1024,
}

FAMILIES = {
    "llama": SIZES,
    "qwen3": SIZES | {"head_dim": 32},
    "gemma2": SIZES | {"head_dim": 16},
    "qwen3_moe": SIZES
    | {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96},
    "gpt2": {"n_embd": 64, "n_head": 4, "vocab_size": 97, "bos_token_id": 1, "eos_token_id": 1},
}


def saved_bytes(family, layers, dtype, lengths, adapter):
    """Bytes of the storages that autograd saves in a forward pass, weights left out; the model."""
    kind = family.partition(",")[0]
    number = "n_layer" if kind == "gpt2" else "num_hidden_layers"
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **FAMILIES[family] | {number: layers}), dtype=torch.float32
    )
    disable_dropout(model)
    config = model.config.to_dict()
    adapters = None if adapter is None else attach_adapters(model, ModelSource("x"), adapter, 0)
    wrapped = model if adapters is None else adapters.model
    policy = Policy(wrapped, choose("auto", CPU)[0], flat=True, adapters=adapters)
    cast_params(policy.parameters(), dtype)
    weights = {param.untyped_storage().data_ptr() for param in policy.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        policy(random_rows(lengths))
    return sum(storage.nbytes() for storage in kept.values()), shape_of("x", config)


@pytest.mark.parametrize(
    ("family", "dtype", "length", "kind"),
    [
        ("llama", torch.float32, 64, "none"),
        ("llama", torch.bfloat16, 64, "none"),  # plain products
        ("llama", torch.bfloat16, 600, "none"),  # SDPA
        ("llama", torch.bfloat16, 64, "lora"),
        ("llama", torch.bfloat16, 64, "dora"),
        ("qwen3", torch.bfloat16, 64, "none"),
        ("gemma2", torch.bfloat16, 64, "none"),
        ("gemma2", torch.bfloat16, 64, "lora"),
        ("qwen3_moe", torch.bfloat16, 64, "none"),
        ("qwen3_moe", torch.bfloat16, 64, "lora"),
        ("gpt2", torch.bfloat16, 64, "none"),
    ],
)
def test_bytes_of_a_layer_are_those_that_autograd_saves(family, dtype, length, kind):
    adapter = None if kind == "none" else AdapterConfig(kind=kind, rank=8)
    lengths = [length, length]
    one, _ = saved_bytes(family, 1, dtype, lengths, adapter)
    three, shape = saved_bytes(family, 3, dtype, lengths, adapter)
    forward = Pass(dtype.itemsize, "cpu", sum(lengths), length, sum(lengths))
    held = HeldModel("policy", shape, trained=1)
    if adapter is not None:
        targets = adapter_targets(shape, adapter)
        held = HeldModel(
            "policy", shape, trained=1, adapter=1, dora=kind == "dora", targets=targets, rank=8
        )
    a_token = sum(activations.layer_bytes(held, forward).values())
    counted = a_token * sum(lengths) + activations.adapter_constant(held, forward)
    assert_close(float(counted), (three - one) / 2, rtol=TOLERANCE, atol=0)


def test_the_formula_of_a_llama_by_hand():
    """b (6 d + 2 K e + 4 f) + 8 d, where a GPU's kernel shares heads and keeps 4 bytes a head."""
    shape = shape_of("x", SIZES | {"model_type": "llama", "num_hidden_layers": 2})
    forward = Pass(2, "cuda", tokens=1, length=600, scored=1)
    held = HeldModel("policy", shape, trained=1)
    found = sum(activations.layer_bytes(held, forward).values())
    assert found == 2 * (6 * 64 + 2 * 2 * 16 + 4 * 192) + 8 * 64 + 4 * 4


def test_checkpointing_keeps_a_vector_a_layer():
    """Of 10 tokens in bf16: 5 layers' and the last norm's input of 64, and what that norm keeps."""
    shape = shape_of("x", SIZES | {"model_type": "llama", "num_hidden_layers": 5})
    forward = Pass(2, "cpu", tokens=10, length=600, scored=10)
    assert activations.checkpointed_bytes(shape, forward) == 10 * 64 * (2 * 6 + 4 + 2)


def test_chunks_of_the_divergence_are_those_of_the_kernel():
    from rlhf_cli.kernels import divergence

    assert activations.CHUNK_BYTES == divergence.CHUNK_BYTES
    assert activations.MIN_CHUNK == divergence.MIN_CHUNK
    assert activations.CHUNK_TENSORS == divergence.TENSORS
