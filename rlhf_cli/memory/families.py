"""Tensors of a model that has no weight files yet, from its config.json: as transformers builds it.

Llama and the families that differ from it in norms, biases and experts, GPT-2, GPT-NeoX and OPT.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_cli.memory.headers import TensorShape

Config = Mapping[str, Any]
Sizes = tuple[int, ...]

QKV_BIAS = ("qwen2", "qwen2_moe", "qwen2_vl", "qwen2_5_vl_text")
"""Model types whose query, key and value have a bias without a key in the config."""

HEAD_NORMS = ("qwen3", "qwen3_moe", "gemma3", "gemma3_text")
"""Model types with a norm of queries and one of keys, as wide as a head."""

WIDE_HEAD_NORMS = ("olmo2",)
"""Model types with norms of queries and keys as wide as all heads together."""

FOUR_NORMS = ("gemma2", "gemma3", "gemma3_text", "glm4")
"""Model types with a norm before and after attention and MLP each."""

LLAMA_LIKE = {
    *QKV_BIAS,
    *HEAD_NORMS,
    *WIDE_HEAD_NORMS,
    *FOUR_NORMS,
    *("llama", "mistral", "mixtral", "gemma", "granite", "olmo", "smollm3", "ministral", "helium"),
}
"""Model types whose tensors are counted exactly here; beside gpt2, gpt_neox and opt."""


def build_tensors(config: Config) -> list[TensorShape]:
    """List the tensors of a language model in the shape of a text config; Llama's for others."""
    builders = {"gpt2": _gpt2, "gpt_neox": _gpt_neox, "opt": _opt}
    build = builders.get(str(config.get("model_type")), _llama)
    return [TensorShape(name, shape) for name, shape in build(config)]


def is_exact(config: Config) -> bool:
    """Return whether `build_tensors` knows the family."""
    return config.get("model_type") in LLAMA_LIKE | {"gpt2", "gpt_neox", "opt"}


def _llama(config: Config) -> Iterator[tuple[str, Sizes]]:
    kind, width = str(config.get("model_type")), int(config["hidden_size"])
    vocab, tied = int(config["vocab_size"]), bool(config.get("tie_word_embeddings"))
    yield "model.embed_tokens.weight", (vocab, width)
    for layer in range(int(config["num_hidden_layers"])):
        at = f"model.layers.{layer}."
        for name, shape in (*_attention(config, kind, width), *_mlp(config, layer, width)):
            yield at + name, shape
        if kind != "olmo":  # whose norms have no weights
            for number in range(4 if kind in FOUR_NORMS else 2):
                yield f"{at}norm_{number}.weight", (width,)
    if kind != "olmo":
        yield "model.norm.weight", (width,)
    if not tied:
        yield "lm_head.weight", (vocab, width)


def _attention(config: Config, kind: str, width: int) -> Iterator[tuple[str, Sizes]]:
    heads = int(config["num_attention_heads"])
    keys = int(config.get("num_key_value_heads") or heads)
    size = int(config.get("head_dim") or width // heads)
    bias = bool(config.get("attention_bias"))
    for name, count in (("q", heads), ("k", keys), ("v", keys)):
        yield f"self_attn.{name}_proj.weight", (count * size, width)
        if bias or kind in QKV_BIAS:
            yield f"self_attn.{name}_proj.bias", (count * size,)
    yield "self_attn.o_proj.weight", (width, heads * size)
    if bias:
        yield "self_attn.o_proj.bias", (width,)
    if kind in (*HEAD_NORMS, *WIDE_HEAD_NORMS):
        wide = kind in WIDE_HEAD_NORMS
        yield "self_attn.q_norm.weight", (heads * size if wide else size,)
        yield "self_attn.k_norm.weight", (keys * size if wide else size,)


def _mlp(config: Config, layer: int, width: int) -> Iterator[tuple[str, Sizes]]:
    experts = expert_count(config)
    if not experts or not has_experts(config, layer):
        yield from _gated(width, int(config["intermediate_size"]), bool(config.get("mlp_bias")))
        return
    inner = int(config.get("moe_intermediate_size") or config["intermediate_size"])
    yield "mlp.gate.weight", (experts, width)
    yield "mlp.experts.gate_up_proj", (experts, 2 * inner, width)
    yield "mlp.experts.down_proj", (experts, width, inner)
    if shared := config.get("shared_expert_intermediate_size"):
        yield from _gated(width, int(shared), bias=False)
        yield "mlp.shared_expert_gate.weight", (1, width)


def _gated(width: int, inner: int, bias: bool) -> Iterator[tuple[str, Sizes]]:
    for name, shape in (("gate", (inner, width)), ("up", (inner, width)), ("down", (width, inner))):
        yield f"mlp.{name}_proj.weight", shape
        if bias:
            yield f"mlp.{name}_proj.bias", shape[:1]


def expert_count(config: Config) -> int:
    """Return the number of experts of a layer; 0 without any."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    return next((int(config[name]) for name in names if config.get(name)), 0)


def has_experts(config: Config, layer: int) -> bool:
    """Return whether a layer of a mixture has experts, not one plain MLP."""
    step = int(config.get("decoder_sparse_step") or 1)
    dense = config.get("mlp_only_layers") or ()
    first = int(config.get("first_k_dense_replace") or 0)
    return layer not in dense and (layer + 1) % step == 0 and layer >= first


def _gpt2(config: Config) -> Iterator[tuple[str, Sizes]]:
    width, vocab = int(config["n_embd"]), int(config["vocab_size"])
    inner = int(config.get("n_inner") or 4 * width)
    yield "wte.weight", (vocab, width)
    yield "wpe.weight", (int(config.get("n_positions") or 1024), width)
    for layer in range(int(config["n_layer"])):
        products = {
            "attn.c_attn": (width, 3 * width),
            "attn.c_proj": (width, width),
            "mlp.c_fc": (width, inner),
            "mlp.c_proj": (inner, width),
        }
        for name, shape in products.items():
            yield f"h.{layer}.{name}.weight", shape
            yield f"h.{layer}.{name}.bias", shape[1:]
        for norm in ("ln_1", "ln_2"):
            yield from _norm(f"h.{layer}.{norm}", width)
    yield from _norm("ln_f", width)


def _norm(name: str, width: int) -> Iterator[tuple[str, Sizes]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _gpt_neox(config: Config) -> Iterator[tuple[str, Sizes]]:
    width, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    vocab, bias = int(config["vocab_size"]), config.get("attention_bias", True)
    yield "gpt_neox.embed_in.weight", (vocab, width)
    for layer in range(int(config["num_hidden_layers"])):
        at = f"gpt_neox.layers.{layer}."
        products = {
            "attention.query_key_value": (3 * width, width),
            "attention.dense": (width, width),
            "mlp.dense_h_to_4h": (inner, width),
            "mlp.dense_4h_to_h": (width, inner),
        }
        for name, shape in products.items():
            yield f"{at}{name}.weight", shape
            if bias or name.startswith("mlp"):
                yield f"{at}{name}.bias", shape[:1]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield from _norm(at + norm, width)
    yield from _norm("gpt_neox.final_layer_norm", width)
    if not config.get("tie_word_embeddings"):
        yield "embed_out.weight", (vocab, width)


def _opt(config: Config) -> Iterator[tuple[str, Sizes]]:
    width, inner = int(config["hidden_size"]), int(config["ffn_dim"])
    vocab, table = int(config["vocab_size"]), int(config.get("max_position_embeddings") or 2048) + 2
    yield "model.decoder.embed_tokens.weight", (vocab, int(config["word_embed_proj_dim"]))
    yield "model.decoder.embed_positions.weight", (table, width)
    for layer in range(int(config["num_hidden_layers"])):
        at = f"model.decoder.layers.{layer}."
        products = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
        for name, shape in {**products, "fc1": (inner, width), "fc2": (width, inner)}.items():
            yield f"{at}{name}.weight", shape
            yield f"{at}{name}.bias", shape[:1]
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            yield from _norm(at + norm, width)
    yield from _norm("model.decoder.final_layer_norm", width)
