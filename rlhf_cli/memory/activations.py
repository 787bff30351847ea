"""Bytes that a forward pass keeps for the backward pass, and that a layer needs for a moment.

The formulas count the tensors that autograd saves in transformers' layers and in ours, and are
compared with saved-tensor hooks in `tests/memory/test_activations.py`.
"""

from dataclasses import dataclass

from rlhf_cli.memory.headers import TensorShape
from rlhf_cli.memory.shape import ModelShape
from rlhf_cli.memory.weights import HeldModel, module_name

PRODUCT_LENGTH = 512
"""On a CPU, bf16 rows shorter than this use plain products; see `models/attention.py`."""

PRODUCT_STEP = 32
"""Rows in plain products are padded to a multiple of this."""

TILE_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
"""Workspace of one tile of logits; see `kernels/chunked.py`."""


@dataclass(frozen=True)
class Pass:
    """A forward pass: its number type, its device, and its rows.

    Attributes:
        itemsize: b, bytes of the compute type.
        kind: `cpu` or `cuda`.
        tokens: n, tokens that the layers compute.
        length: T, of the rows, longest of a typical micro-batch.
        scored: tokens that the output layer computes.
        attention: `model.attention`.
        kernels: `kernels`.
    """

    itemsize: int
    kind: str
    tokens: int
    length: int
    scored: int
    attention: str = "auto"
    kernels: str | list[str] = "auto"

    @property
    def by_products(self) -> bool:
        """Whether attention is computed by plain products, which keep the probabilities."""
        short = self.itemsize == 2 and self.length < PRODUCT_LENGTH
        return self.attention == "eager" or (self.kind == "cpu" and short)


def saved_bytes(model: HeldModel, forward: Pass) -> int:
    """Bytes that all layers keep for the backward pass."""
    shape = model.shape
    a_token = sum(layer_bytes(model, forward).values())
    final = forward.tokens * (4 + 2 * forward.itemsize) * shape.width
    return forward.tokens * a_token * shape.layers + final


def checkpointed_bytes(model: HeldModel, forward: Pass) -> int:
    """Bytes that are kept where only the input of each layer is, and one layer is recomputed."""
    shape = model.shape
    inputs = forward.tokens * forward.itemsize * shape.width * (shape.layers + 1)
    return inputs + forward.tokens * sum(layer_bytes(model, forward).values())


def layer_bytes(model: HeldModel, forward: Pass) -> dict[str, int]:
    """Bytes a token of one layer: `norms`, `attention`, `scores` and `mlp`.

    With plain attention and full training b (6 d + 2 K e + 4 f) + 8 d: the norms keep their input
    in fp32, the normalized value and their output, attention q, k, v and its output, the MLP its
    gate, activation, up and product.
    """
    return {
        "norms": _norm_bytes(model, forward),
        "attention": _attention_bytes(model.shape, forward),
        "scores": _score_bytes(model.shape, forward),
        "mlp": _mlp_bytes(model, forward),
        "adapter": _adapter_bytes(model, forward),
    }


def _norm_bytes(model: HeldModel, forward: Pass) -> int:
    """Two norms: the fp32 input, the normalized value where the weight is trained, the output."""
    b, width = forward.itemsize, model.shape.width
    own = 4 + (b if model.trains_base else 0)
    return 2 * width * (own + b)


def _attention_bytes(shape: ModelShape, forward: Pass) -> int:
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    repeated = forward.kind == "cpu" or forward.by_products
    keys = queries if repeated else keys
    outputs = 1 if forward.by_products or forward.kind == "cuda" else 2
    return forward.itemsize * (queries + 2 * keys + outputs * queries)


def _score_bytes(shape: ModelShape, forward: Pass) -> int:
    """Probabilities of plain products; fused kernels keep one fp32 number a head."""
    if not forward.by_products:
        return 4 * shape.heads
    length = -(-forward.length // PRODUCT_STEP) * PRODUCT_STEP
    return forward.itemsize * shape.heads * length


def _mlp_bytes(model: HeldModel, forward: Pass) -> int:
    shape, b = model.shape, forward.itemsize
    kept = 4 if shape.gated else 2
    inner = shape.ffn * (shape.experts_per_token or 1)
    return b * kept * inner


def _adapter_bytes(model: HeldModel, forward: Pass) -> int:
    """Low-rank products, and with DoRA the outputs of base and adapter."""
    layers = max(1, model.shape.layers)
    if not model.targets:
        return 0
    kept = model.rank * len(model.targets)
    if model.dora:
        kept += 2 * sum(_outputs(tensor) for tensor in model.targets)
    return forward.itemsize * kept // layers


def _outputs(tensor: TensorShape) -> int:
    transposed = module_name(tensor).endswith(("c_attn", "c_fc", "c_proj"))  # GPT-2's
    return tensor.shape[-1] if transposed else tensor.shape[-2]


def transient_bytes(model: HeldModel, forward: Pass) -> int:
    """Bytes that the widest part of a layer needs for a moment in a pass without gradients."""
    shape, b = model.shape, forward.itemsize
    inner = shape.ffn * (shape.experts_per_token or 1)
    width = 3 * b * inner + (4 + 2 * b) * shape.width
    scores = 2 * _score_bytes(shape, forward)
    dequantized = b * max((t.count for t in shape.matrices), default=0) if model.quantized else 0
    return forward.tokens * max(width, scores) + dequantized


def backward_bytes(model: HeldModel, forward: Pass) -> int:
    """Bytes that the backward pass of one layer needs beside what was kept."""
    return transient_bytes(model, forward)


def logits_bytes(shape: ModelShape, forward: Pass, *, backward: bool, entropy: bool = False) -> int:
    """Workspace of the log-probs: tiles of logits, and in the backward pass their gradients."""
    b, vocab = forward.itemsize, shape.vocab
    names = [forward.kernels] if isinstance(forward.kernels, str) else list(forward.kernels)
    if names == ["none"] or ("eager" in names and not {"triton", "chunked"} & {*names}):
        return forward.scored * vocab * ((b + 4 * 4) if backward else (b + 3 * 4))
    columns = max(64, TILE_BYTES[forward.kind] // (max(1, forward.scored) * (4 + b)))
    tile = forward.scored * min(columns, vocab) * (4 + b) * (2 if entropy else 1)
    kept = forward.scored * shape.width * (b + ((4 + b) if backward else 0))
    return tile + kept
