"""`ModelShape`: a model's sizes, from a config of transformers and the shapes of its tensors."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

from rlhf_cli.memory.families import build_tensors, expert_count, is_exact
from rlhf_cli.memory.headers import TensorShape

EMBEDDINGS = r"(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight$"
OUTPUTS = r"^(lm_head|embed_out|output|cls\.predictions\.decoder)\.weight$"
SCORES = r"^(score|classifier(\.out_proj)?)\.weight$"
POSITIONS = r"(wpe|embed_positions|position_embeddings|token_type_embeddings)\.weight$"
OTHERS = (
    r"(^|\.)(vision_tower|vision_model|visual|multi_modal_projector|audio_tower|embed_vision"
    r"|embed_audio)\.|^mtp\."
)
"""Modules that no text passes through."""

_KINDS = {
    "other": OTHERS,
    "embedding": EMBEDDINGS,
    "output": OUTPUTS,
    "score": SCORES,
    "positions": POSITIONS,
}
_WRAPPERS = re.compile(r"^((module|_orig_mod|_fsdp_wrapped_module|base_model\.model)\.)+")


@dataclass(frozen=True)
class NormShape:
    """How a layer normalizes.

    Attributes:
        kind: `rms` in fp32 and back, `gemma` with its weight in fp32 too, or torch's `layer` norm.
        count: norms of hidden states.
        head_values: values that norms of queries and keys normalize for a token; 0 without such.
    """

    kind: Literal["rms", "gemma", "layer"] = "rms"
    count: int = 2
    head_values: int = 0


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model.

    Attributes:
        name: of the model, for messages.
        model_type: of transformers.
        tensors: every tensor of the weights, tied ones once.
        layers: L.
        width: d, of a hidden state.
        heads: H, query heads.
        kv_heads: K, key and value heads.
        head_dim: e, width of a head.
        ffn: f, inner width of an MLP, or of one expert.
        vocab: V, rows of the embeddings.
        tied: whether the output layer shares the input embeddings.
        stored: bytes of a value in the files; 0 for random weights.
        experts: of a layer; 0 without any.
        experts_per_token: experts that a token passes.
        windows: sliding window of each layer; None for a layer that sees everything.
        softcap: whether attention scores are capped, which the fused kernels do not do.
        positions: longest row; 0 if the config names none.
        gated: whether the MLP has a gate.
        norms: how a layer normalizes.
        unfused_gelu: whether the MLP's activation is GPT-2's, in elementwise steps.
        parallel: whether attention and MLP of a layer read the same hidden states.
        exact: whether the tensors are known, not those of a similar family.
        adapters: tensors of the adapters that the model comes with.
        quant: quantization that the adapters were trained with, else `none`.
    """

    name: str
    model_type: str
    tensors: tuple[TensorShape, ...]
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool
    stored: int
    experts: int = 0
    experts_per_token: int = 0
    windows: tuple[int | None, ...] = ()
    softcap: bool = False
    positions: int = 0
    gated: bool = True
    norms: NormShape = NormShape()
    unfused_gelu: bool = False
    parallel: bool = False
    exact: bool = True
    adapters: tuple[TensorShape, ...] = ()
    quant: str = "none"

    @cached_property
    def by_kind(self) -> dict[str, int]:
        """Kind of tensor -> number of parameters.

        Kinds are `embedding`, `positions`, `linear` (matrices, experts too), `vector` (norms and
        biases), `output`, `score` and `other` (modules that no text passes through).
        """
        found: Counter[str] = Counter()
        for tensor in self.tensors:
            found[kind_of(tensor)] += tensor.count
        return dict(found)

    @property
    def parameters(self) -> int:
        """Number of parameters of the language model, without a score head, tied ones once."""
        return sum(count for kind, count in self.by_kind.items() if kind != "score")

    @property
    def embedding(self) -> int:
        """Parameters of the input embeddings."""
        return self.by_kind.get("embedding", self.vocab * self.width)

    @property
    def matrices(self) -> list[TensorShape]:
        """Weights of linear layers but the output layer; experts of a layer may be one tensor."""
        return [tensor for tensor in self.tensors if kind_of(tensor) == "linear"]

    @property
    def stored_bytes(self) -> int:
        """Size of the weight files."""
        return sum(tensor.count * tensor.itemsize for tensor in self.tensors) if self.stored else 0

    def as_reward_model(self) -> "ModelShape":
        """Return the shape with a score head of one label in place of the output layer."""
        kept = [t for t in self.tensors if kind_of(t) not in ("output", "score")]
        head = TensorShape("score.weight", (1, self.width), self.stored or 4)
        return replace(self, tensors=(*kept, head))


@lru_cache(maxsize=4096)
def kind_of(tensor: TensorShape) -> str:
    """Return the kind of a tensor by its name and shape; see `ModelShape.by_kind`."""
    name = _WRAPPERS.sub("", tensor.name)
    for kind, pattern in _KINDS.items():
        if re.search(pattern, name):
            return kind
    return "linear" if len(tensor.shape) > 1 else "vector"


def shape_of(name: str, config: Mapping[str, Any]) -> ModelShape:
    """Return the shape of random weights that a config describes.

    Args:
        name: for messages.
        config: of transformers, as in config.json.
    """
    text = text_config(config)
    return build_shape(name, text, build_tensors(with_defaults(text)), stored=0)


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that describes the language model."""
    inner = config.get("text_config")
    if not isinstance(inner, Mapping):
        return dict(config)
    outer = {k: v for k, v in config.items() if not isinstance(v, Mapping)}
    return {**outer, **inner}


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the defaults of transformers that `build_tensors` needs."""
    found = dict(config)
    if found.get("model_type") == "opt":
        found.setdefault("word_embed_proj_dim", found["hidden_size"])
    return found


def _first(config: Mapping[str, Any], *names: str, default: int = 0) -> int:
    return next((int(config[name]) for name in names if config.get(name)), default)


def build_shape(
    name: str,
    config: Mapping[str, Any],
    tensors: Sequence[TensorShape],
    stored: int,
    *,
    from_files: bool = False,
) -> ModelShape:
    """Build a shape from the config of a language model and its tensors.

    Args:
        name: for messages.
        config: of the language model, as `text_config` returns it.
        tensors: of the weights, tied ones once.
        stored: bytes of a value in the files; 0 for random weights.
        from_files: whether the tensors are those of files, not of a similar family.

    Raises:
        KeyError: the config lacks a size.
    """
    width = _first(config, "hidden_size", "n_embd", "d_model")
    layers = _first(config, "num_hidden_layers", "n_layer", "num_layers")
    if not (width and layers):
        raise KeyError("hidden_size and num_hidden_layers")
    heads = _first(config, "num_attention_heads", "n_head", default=1)
    experts = expert_count(config)
    return ModelShape(
        name=name,
        model_type=str(config.get("model_type", "")),
        tensors=tuple(tensors),
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=_first(config, "num_key_value_heads", default=heads),
        head_dim=_first(config, "head_dim", default=width // heads),
        ffn=_inner_width(config, width, experts),
        vocab=_vocabulary(tensors) or int(config["vocab_size"]),
        tied=not any(kind_of(tensor) == "output" for tensor in tensors),
        stored=stored,
        experts=experts,
        experts_per_token=_first(config, "num_experts_per_tok") if experts else 0,
        windows=_windows(config, layers),
        softcap=bool(config.get("attn_logit_softcapping")),
        positions=_first(config, "max_position_embeddings", "n_positions"),
        gated=any("gate" in tensor.name or ".w3." in tensor.name for tensor in tensors),
        norms=_norms(config, tensors, width),
        unfused_gelu=_activation(config) == "gelu_new",
        parallel=config.get("model_type") == "gpt_neox"
        and config.get("use_parallel_residual", True),
        exact=from_files or is_exact(config),
    )


def _inner_width(config: Mapping[str, Any], width: int, experts: int) -> int:
    inner = _first(config, "moe_intermediate_size") if experts else 0
    return inner or _first(config, "intermediate_size", "n_inner", "ffn_dim", default=4 * width)


def _activation(config: Mapping[str, Any]) -> str:
    default = "gelu_new" if config.get("model_type") == "gpt2" else ""
    return str(config.get("hidden_act") or config.get("activation_function") or default)


_NORM = re.compile(r"(?:^|\.)(?:layers|h|blocks?)\.0\.(?:.*\.)?(\w*norm\w*|ln_\w+)\.(weight|bias)$")


def _norms(config: Mapping[str, Any], tensors: Sequence[TensorShape], width: int) -> NormShape:
    """Norms of the first layer, by the names of its tensors."""
    found = [(match, t) for t in tensors if (match := _NORM.search(t.name))]
    weights = [(match[1], tensor) for match, tensor in found if match[2] == "weight"]
    of_heads = {name for name, _ in weights if name in ("q_norm", "k_norm")}
    heads = _first(config, "num_attention_heads", default=1)
    keys = _first(config, "num_key_value_heads", default=heads)
    size = _first(config, "head_dim", default=width // heads)
    kind: Literal["rms", "gemma", "layer"] = "rms"
    if any(match[2] == "bias" for match, _ in found):
        kind = "layer"
    elif str(config.get("model_type")).startswith("gemma"):
        kind = "gemma"
    count = len(weights) - len(of_heads) or 2
    return NormShape(kind, count, (heads + keys) * size if of_heads else 0)


def _vocabulary(tensors: Sequence[TensorShape]) -> int:
    return next((t.shape[0] for t in tensors if kind_of(t) == "embedding"), 0)


def _windows(config: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    window = config.get("sliding_window")
    kinds = config.get("layer_types")
    if not window or config.get("use_sliding_window") is False:
        return (None,) * layers
    if isinstance(kinds, list) and len(kinds) == layers:
        return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)
    return (int(window),) * layers
