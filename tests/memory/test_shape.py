"""Shapes from config.json and headers of weights, against the models that transformers makes."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_cli.errors import ConfigError
from rlhf_cli.memory.model_files import read_shape
from rlhf_cli.memory.shape import shape_of
from rlhf_cli.memory.weights import adapter_targets, count_adapter, weight_bytes
from rlhf_cli.models.attach_adapters import attach_adapters
from rlhf_cli.models.config import AdapterConfig, ModelConfig
from rlhf_cli.models.resolve import ModelSource
from tests.helpers import tiny_llama

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}

FAMILIES = {
    "llama": SIZES,
    "llama, tied, biases": SIZES
    | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "mistral": SIZES,
    "qwen2": SIZES,
    "qwen3": SIZES | {"head_dim": 16},
    "gemma2": SIZES | {"head_dim": 8},
    "gemma3_text": SIZES | {"head_dim": 8},
    "olmo2": SIZES,
    "granite": SIZES,
    "qwen3_moe": SIZES | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "mixtral": SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_neox": SIZES,
    "opt": SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt2": {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": 64,
        "n_positions": 64,
        "bos_token_id": 1,
        "eos_token_id": 1,
    },
}


def config_of(family):
    return AutoConfig.for_model(family.partition(",")[0], **FAMILIES[family])


def count(model):
    return sum(param.numel() for param in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_of_a_config_are_those_of_the_model(family):
    config = config_of(family)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = shape_of(family, config.to_dict())
    assert shape.exact
    assert shape.parameters == count(model)
    assert shape.tied == model.config.get_text_config().tie_word_embeddings


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt2"])
def test_headers_give_the_same_as_the_config(family, tmp_path):
    model = AutoModelForCausalLM.from_config(config_of(family)).bfloat16()
    model.save_pretrained(tmp_path)
    shape = read_shape(ModelConfig(path=str(tmp_path)))
    assert shape.parameters == count(model)
    assert shape.stored == 2
    assert shape.stored_bytes == 2 * count(model)
    assert shape.norms == shape_of(family, model.config.to_dict()).norms


def test_random_weights_have_the_vocabulary_of_their_tokenizer():
    shape = read_shape(ModelConfig(path="tiny"))
    assert (shape.vocab, shape.width, shape.layers, shape.stored) == (1024, 128, 4, 0)
    trained = ModelConfig(init="scratch", tokenizer_vocab_size=300)
    assert read_shape(trained).vocab == 300


def test_an_unknown_family_is_counted_as_a_llama_and_says_so():
    shape = shape_of("x", SIZES | {"model_type": "unheard_of"})
    assert not shape.exact
    assert shape.parameters == shape_of("x", SIZES | {"model_type": "llama"}).parameters


def test_the_text_model_of_several_is_read():
    nested = {"model_type": "gemma3", "text_config": FAMILIES["gemma3_text"] | {"head_dim": 8}}
    nested["text_config"] |= {"model_type": "gemma3_text"}
    assert shape_of("x", nested).layers == 2


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (None, "model.path"),
        ("{", "config.json"),
        (json.dumps({"model_type": "llama"}), "shape"),
        (json.dumps({"model_type": "t5", "is_encoder_decoder": True}), "encoder-decoder"),
    ],
)
def test_what_is_no_language_model_is_refused_in_one_line(tmp_path, written, said):
    if written is not None:
        (tmp_path / "config.json").write_text(written)
    with pytest.raises(ConfigError, match=said) as refused:
        read_shape(ModelConfig(path=str(tmp_path)))
    assert "\n" not in str(refused.value)


def test_a_damaged_weight_file_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SIZES | {"model_type": "llama"}))
    (tmp_path / "model.safetensors").write_bytes(b"\x05\x00")
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        read_shape(ModelConfig(path=str(tmp_path)))


@pytest.mark.parametrize(
    "adapter",
    [
        AdapterConfig(kind="lora", rank=4),
        AdapterConfig(kind="dora", rank=4),
        AdapterConfig(kind="lora", rank=2, targets=["q_proj", "down_proj"]),
        AdapterConfig(kind="lora", rank=2, modules_to_save=["norm"]),
    ],
)
def test_an_adapter_has_as_many_parameters_as_that_of_peft(adapter):
    model = tiny_llama()
    shape = shape_of("x", model.config.to_dict())
    counted = count_adapter(shape, adapter, adapter_targets(shape, adapter))
    attached = attach_adapters(model, ModelSource("x"), adapter, 0).model
    assert counted == sum(p.numel() for p in attached.parameters() if p.requires_grad)


def test_bytes_of_quantized_weights_by_hand():
    """A Llama of d 64, f 128, one layer: linear layers of 4 d d + 3 d f = 40,960 values."""
    sizes = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "vocab_size": 10}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "tie_word_embeddings": True}
    shape = shape_of("x", sizes)
    others = 10 * 64 + 3 * 64
    assert weight_bytes(shape, 2, "none", double=True, output=False) == 2 * (40_960 + others)
    nf4 = 40_960 // 2 + 4 * 40_960 // 64
    assert weight_bytes(shape, 2, "nf4", double=False, output=False) == nf4 + 2 * others
    int8 = 40_960 + 4 * (4 * 64 + 2 * 128 + 64)
    assert weight_bytes(shape, 2, "int8", double=False, output=False) == int8 + 2 * others
