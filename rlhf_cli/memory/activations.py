"""Bytes that a forward pass keeps for the backward pass, and that a layer needs for a moment.

The formulas count the tensors that autograd saves in transformers' layers and in ours;
`tests/memory/test_activations.py` compares them with saved-tensor hooks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from rlhf_cli.memory.headers import TensorShape
from rlhf_cli.memory.shape import ModelShape
from rlhf_cli.memory.weights import HeldModel, is_expert, module_name

PRODUCT_LENGTH = 512
"""On a CPU, bf16 rows shorter than this use plain products; see `models/attention.py`."""

PRODUCT_STEP = 32
"""Rows in plain products are padded to a multiple of this."""

GROUP_LENGTH = 128
"""Rows up to this length are computed together; see `models/attention.py`."""

TILE_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
"""Workspace of one tile of logits; see `kernels/chunked.py`."""

CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
MIN_CHUNK, CHUNK_TENSORS = 16, 7
"""Workspace and least tokens of a chunk of two models' logits, and its [tokens, V] tensors; see
`kernels/divergence.py`."""

LAYERS_INTO_ATTENTION = {"q_proj", "k_proj", "v_proj", "c_attn", "query_key_value", "qkv_proj"}
LAYERS_OUT_OF_ATTENTION = {"o_proj", "out_proj", "dense", "c_proj"}
LAYERS_INTO_MLP = {"gate_proj", "up_proj", "gate_up_proj", "c_fc", "dense_h_to_4h", "fc1"}
LAYERS_OUT_OF_MLP = {"down_proj", "c_proj", "dense_4h_to_h", "fc2"}
"""Names of the linear layers that read the output of a norm, of attention, and of an MLP."""


@dataclass(frozen=True)
class Pass:
    """A forward pass: its number type, its device, and its rows.

    Attributes:
        itemsize: b, bytes of the compute type.
        kind: `cpu` or `cuda`.
        tokens: n, tokens that the layers compute.
        length: T, of its rows.
        scored: tokens that the output layer computes.
        attention: `model.attention`.
        kernels: `kernels`.
        liger: whether liger-kernel's layers replace the model's own.
    """

    itemsize: int
    kind: str
    tokens: int
    length: int
    scored: int
    attention: str = "auto"
    kernels: str | Sequence[str] = "auto"
    liger: bool = False

    def by_products(self, shape: ModelShape) -> bool:
        """Whether attention is computed by plain products, which keep the probabilities."""
        short = self.kind == "cpu" and self.itemsize == 2 and self.length < PRODUCT_LENGTH
        return self.attention == "eager" or shape.softcap or short


def saved_bytes(model: HeldModel, forward: Pass) -> int:
    """Bytes that all layers and the last norm keep for the backward pass."""
    shape = model.shape
    layer = sum(layer_bytes(model, forward).values())
    last = forward.tokens * shape.width * (4 + 2 * forward.itemsize)
    return (forward.tokens * layer + adapter_constant(model, forward)) * shape.layers + last


def checkpointed_bytes(shape: ModelShape, forward: Pass) -> int:
    """Bytes that are kept where only the input of each layer is; the last norm keeps its own."""
    inputs = forward.tokens * forward.itemsize * shape.width * (shape.layers + 1)
    return inputs + forward.tokens * shape.width * (4 + forward.itemsize)


def one_layer_bytes(model: HeldModel, forward: Pass) -> int:
    """Bytes that one layer keeps, as when it is recomputed."""
    layer = forward.tokens * sum(layer_bytes(model, forward).values())
    return layer + adapter_constant(model, forward)


def layer_bytes(model: HeldModel, forward: Pass) -> dict[str, int]:
    """Bytes a token that one layer keeps: of `norms`, `attention`, `scores`, `mlp` and `adapter`.

    In full training of a Llama with fused attention b (6 d + 2 K e + 4 f) + 8 d: its norms keep
    their input in fp32, the normalized value and their output; attention keeps q, k, v and its
    output; the MLP keeps its gate, activation, up and product.
    """
    return {
        "norms": _norm_bytes(model, forward),
        "attention": _attention_bytes(model, forward),
        "scores": score_bytes(model.shape, forward),
        "mlp": _mlp_bytes(model, forward),
        "adapter": _adapter_bytes(model, forward),
    }


def _reads(model: HeldModel, layers: set[str]) -> bool:
    """Whether the input of some layers is kept, for the gradient of a weight or an adapter."""
    return model.trains_base or bool(layers & model.target_names)


def _norm_bytes(model: HeldModel, forward: Pass) -> int:
    b, shape, norms = forward.itemsize, model.shape, model.shape.norms
    outputs = int(_reads(model, LAYERS_INTO_ATTENTION)) + int(_reads(model, LAYERS_INTO_MLP))
    kept = b * outputs * shape.width
    if norms.kind == "layer":
        inputs = 1 if shape.parallel else norms.count
        return kept + b * inputs * shape.width
    if forward.liger:  # keeps the input in the compute type
        return kept + b * norms.count * shape.width + b * norms.head_values
    normalized = 0 if not model.trains_base else 4 if norms.kind == "gemma" else b
    return kept + (4 + normalized) * (norms.count * shape.width + norms.head_values)


def _attention_bytes(model: HeldModel, forward: Pass) -> int:
    """q, k, v, the kernel's output where it keeps one, and the input of the layer behind it."""
    shape, products = model.shape, forward.by_products(model.shape)
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    varlen = forward.kind == "cuda" and forward.itemsize == 2 and not products
    keys = keys if varlen else queries  # other kernels get shared heads repeated
    read = int(_reads(model, LAYERS_OUT_OF_ATTENTION))
    outputs = read if products else 1 if varlen else 1 + read
    return forward.itemsize * (queries + 2 * keys + outputs * queries)


def score_bytes(shape: ModelShape, forward: Pass) -> int:
    """Bytes a token of the probabilities of plain products; fused kernels keep 4 a head."""
    if not forward.by_products(shape):
        return 4 * shape.heads
    length = ceil(forward.length / PRODUCT_STEP) * PRODUCT_STEP
    return forward.itemsize * shape.heads * length * (2 if shape.softcap else 1)


def _mlp_bytes(model: HeldModel, forward: Pass) -> int:
    shape, b = model.shape, forward.itemsize
    kept = (3 if shape.gated else 1) + int(_reads(model, LAYERS_OUT_OF_MLP))
    kept += 3 * int(shape.unfused_gelu) - int(forward.liger and shape.gated)
    if not shape.experts:
        return b * kept * shape.ffn
    # the tokens of each expert, and its outputs before they are weighted
    return b * max(1, shape.experts_per_token) * (kept * shape.ffn + 2 * shape.width)


def _adapter_bytes(model: HeldModel, forward: Pass) -> int:
    """Low-rank products, and with DoRA the outputs of base and adapter."""
    if not model.targets:
        return 0
    kept = model.rank * len(model.targets)
    if model.dora:
        kept += 2 * sum(sizes(tensor)[0] for tensor in model.targets)
    return forward.itemsize * kept // model.shape.layers


def adapter_constant(model: HeldModel, forward: Pass) -> int:
    """Bytes that an adapter keeps for each layer, whatever the number of tokens.

    PEFT adds the adapters of experts to their weights in each pass; and its DoRA sends an identity
    matrix through the adapter to get the norms of the whole weight.
    """
    experts = sum(tensor.count for tensor in model.targets if is_expert(tensor))
    inputs = [sizes(tensor)[1] for tensor in model.targets] if model.dora else []
    kept = experts + sum(size * (size + model.rank) for size in inputs)
    return forward.itemsize * kept // model.shape.layers


def sizes(tensor: TensorShape) -> tuple[int, int]:
    """Outputs and inputs of a linear layer; GPT-2 stores its weights the other way round."""
    rows, columns = tensor.shape[-2:]
    transposed = module_name(tensor).rpartition(".")[2] in ("c_attn", "c_fc", "c_proj")
    return (columns, rows) if transposed else (rows, columns)


def transient_bytes(model: HeldModel, forward: Pass) -> int:
    """Bytes that a pass without gradients holds at once: in its widest part, attention or MLP."""
    shape, b, n = model.shape, forward.itemsize, forward.tokens
    inner = shape.ffn * max(1, shape.experts_per_token)
    queries = shape.heads * shape.head_dim
    mlp = n * b * ((3 if shape.gated else 2) * inner + 4 * shape.width + 2 * shape.head_dim)
    together = n if forward.length <= GROUP_LENGTH else min(n, forward.length)
    scores = 2 * together * score_bytes(shape, forward) if forward.by_products(shape) else 0
    attention = n * b * (4 * shape.width + 4 * queries) + scores
    return max(mlp, attention) + dequantized_bytes(model, forward)


def backward_bytes(model: HeldModel, forward: Pass) -> int:
    """Bytes that the backward pass of a layer needs beside what it kept: gradients of its MLP."""
    shape = model.shape
    inner = shape.ffn * max(1, shape.experts_per_token)
    mlp = forward.tokens * forward.itemsize * (4 if shape.gated else 3) * inner
    return mlp + dequantized_bytes(model, forward)


def dequantized_bytes(model: HeldModel, forward: Pass) -> int:
    """Bytes of the largest quantized weight in the compute type, which each product makes anew."""
    if not model.quantized:
        return 0
    return forward.itemsize * max((tensor.count for tensor in model.shape.matrices), default=0)


def is_eager(forward: Pass) -> bool:
    """Whether `kernels` chooses the log-probs that hold whole logits."""
    if isinstance(forward.kernels, str):
        return forward.kernels == "none"
    return "eager" in forward.kernels and not {"triton", "chunked"} & {*forward.kernels}


def divergence_bytes(shape: ModelShape, forward: Pass, *, trained: bool) -> int:
    """Workspace of the divergence from a teacher: a chunk of both logits, and the gradients.

    Args:
        shape: of the student.
        forward: the pass.
        trained: whether the output layer has a gradient, which is summed in fp32.
    """
    each = CHUNK_TENSORS * 4 * shape.vocab
    chunk = min(forward.scored, max(MIN_CHUNK, CHUNK_BYTES[forward.kind] // each))
    of_weight = 4 * shape.vocab * shape.width if trained else 0
    hidden = forward.scored * (2 * forward.itemsize + 4) * shape.width
    return hidden + chunk * each + of_weight


def logits_bytes(shape: ModelShape, forward: Pass, *, backward: bool, entropy: bool = False) -> int:
    """Workspace of the log-probs of scored tokens.

    A tile of logits in the compute type and in fp32, twice with the entropy, and the hidden states;
    in the backward pass also their gradient in fp32. `eager` holds whole logits several times.
    """
    b, scored = forward.itemsize, forward.scored
    gradient = (4 + 2 * b) * shape.width if backward else 0
    hidden = scored * (b * shape.width + gradient)
    if is_eager(forward):
        return hidden + scored * shape.vocab * ((b + 16) if backward else (b + 12))
    each = 4 if b == 4 else 4 + b
    columns = max(64, TILE_BYTES[forward.kind] // (max(1, scored) * (4 + b)) // 64 * 64)
    tile = scored * min(columns, shape.vocab) * each
    return hidden + tile + (scored * min(columns, shape.vocab) * 4 if entropy else 0)
