"""Config classes of models: weights and tokenizer, adapters, and quantization."""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from rlhf_cli.config.schema import FilePath, Ge, Gt, Lt, ModelPath
from rlhf_cli.resources import SHIPPED

MIN_VOCAB_SIZE = 256 + 5
"""Smallest vocabulary of a trained tokenizer: every byte, and tokens for end, padding and roles."""

Attention = Literal[
    "auto", "per_row", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"
]

FLASH_PACKAGES = {
    "flash_attention_2": ("flash_attn", "pip install flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "the hopper folder of Dao-AILab/flash-attention"),
}
"""Module of each flash attention, and how to install it."""

LIGER = "liger"
"""Value in `kernels`: liger-kernel's layers in place of the model's own."""

LIGER_MODULE = "liger_kernel"


DEFAULT_ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 288,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "intermediate_size": 768,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
"""Architecture of `model.init=scratch` without `model.architecture`: an 8 M parameter Llama."""

DEFAULT_VOCAB_SIZE = 8192


@dataclass(kw_only=True)
class ModelConfig:
    """Model weights, tokenizer, types and attention."""

    path: Annotated[str, ModelPath("revision", "base")] = ""
    """Model folder, run folder, hub id, or `tiny` (shipped, random weights)."""

    revision: str = ""
    """Branch, tag or commit of the hub id at `path`; empty takes its default branch."""

    base: Annotated[str, ModelPath("base_revision")] = ""
    """With an adapter at `path`: its base model, where that is not found where the adapter names
    it."""

    base_revision: str = ""
    """Branch, tag or commit of the adapter's base; empty takes the one that it was trained on."""

    init: Literal["auto", "pretrained", "scratch"] = "auto"
    """`pretrained` loads the weights at `path`, `scratch` initializes random ones by its config;
    `auto` is `scratch` for `tiny` and `pretrained` for everything else."""

    architecture: dict[str, Any] = field(default_factory=dict)
    """With `init=scratch` and no `path`: keys of a transformers config, `model_type` among them.
    Empty takes a Llama of 8 M parameters."""

    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Type of the saved weights; `auto` is the compute type."""

    attention: Attention = "auto"
    """Attention implementation. `per_row` computes concatenated rows without padding, and so do
    `flash_attention_2`, `flash_attention_3` (where installed) and `flex_attention`, all on CUDA;
    `sdpa` and `eager` pad. `auto` is `per_row` where a probe finds it exact, else `sdpa`."""

    tokenizer: Annotated[str, ModelPath("tokenizer_revision")] = ""
    """Tokenizer folder or hub id; empty takes the one at `path`."""

    tokenizer_revision: str = ""
    """Branch, tag or commit of the hub id at `tokenizer`."""

    tokenizer_vocab_size: Annotated[int, Ge(0)] = 0
    """Train a byte-level BPE tokenizer of this size on the training text; needs `init=scratch` and
    at least 261. 0 trains none, except that `init=scratch` without any tokenizer takes 8192."""

    chat_template: Annotated[str, FilePath()] = ""
    """Jinja file that replaces the tokenizer's chat template."""

    trust_remote_code: bool = False
    """Run Python code that ships with a hub model."""

    @property
    def from_scratch(self) -> bool:
        """Whether the weights are initialized randomly."""
        return self.init == "scratch" or (self.init == "auto" and self.path == SHIPPED)

    def problems(self) -> list[str]:
        """List contradictions, one line each."""
        found = []
        if self.architecture and self.path:
            found.append(
                f"model.architecture: given beside model.path={self.path}, which has its own; "
                "need one of the two"
            )
        elif self.architecture and self.init != "scratch":
            found.append(
                f"model.architecture: given with model.init={self.init}; need random weights. "
                "Try model.init=scratch"
            )
        if self.architecture and not isinstance(self.architecture.get("model_type"), str):
            found.append(
                "model.architecture: got no model_type. Try model.architecture.model_type=llama"
            )
        if 0 < self.tokenizer_vocab_size < MIN_VOCAB_SIZE:
            found.append(
                f"model.tokenizer_vocab_size: got {self.tokenizer_vocab_size}; need 0, or at least "
                f"{MIN_VOCAB_SIZE}: 256 bytes and 5 special tokens. "
                "Try model.tokenizer_vocab_size=8192"
            )
        if self.tokenizer_vocab_size and not self.from_scratch:
            found.append(
                f"model.tokenizer_vocab_size: got {self.tokenizer_vocab_size} with model.init="
                f"{self.init}; a new tokenizer needs new weights. Try model.init=scratch"
            )
        if self.tokenizer_vocab_size and self.tokenizer:
            found.append(
                f"model.tokenizer_vocab_size: got {self.tokenizer_vocab_size} beside "
                f"model.tokenizer={self.tokenizer}; need one of the two"
            )
        return found

    def missing(self) -> list[str]:
        """List the problem of a run without a model."""
        if self.path or self.init == "scratch":
            return []
        return [
            "model.path: none given; need a model folder, run folder or hub id, or "
            "model.init=scratch. Try model=runs/sft, or model=tiny (shipped, random weights)"
        ]


@dataclass(kw_only=True)
class TrainedModelConfig(ModelConfig):
    """Config of a model that is trained."""

    freeze: list[str] = field(default_factory=list)
    """In full training: modules that are not trained, as in `[embed_tokens, layers.0]`. They are
    kept and saved in the compute type."""


REFERENCE_CHOICES = ("auto", "copy", "adapter_off", "stored", "none")
"""Values of `model.reference` that are not a path."""


@dataclass(kw_only=True)
class ComparedModelConfig(TrainedModelConfig):
    """Config of a policy with a reference model."""

    reference: Annotated[str, ModelPath("reference_revision", words=REFERENCE_CHOICES)] = "auto"
    """Reference model: `copy` is a frozen copy of the initial policy; `adapter_off` is the policy
    without its new adapter; `stored` computes the initial policy's log-probs once; `none`
    uses no reference; or a model folder, run folder or hub id. `auto` is `adapter_off` with a new
    adapter, else `stored`."""

    reference_revision: str = ""
    """Branch, tag or commit of the hub id at `reference`."""

    reference_choices: ClassVar[tuple[str, ...]] = REFERENCE_CHOICES
    """Values of `reference` that are not a path."""

    def reference_problems(self, adapter: str) -> list[str]:
        """List contradictions of `reference`, one line each.

        Args:
            adapter: `adapter.kind`.
        """
        if self.reference == "adapter_off" and adapter == "none":
            return [
                "model.reference: got adapter_off with adapter.kind=none; need a new adapter to "
                "take away. Try model.reference=auto"
            ]
        if self.reference == SHIPPED:
            return [
                f"model.reference: got {SHIPPED}, a shape with random weights; need a trained "
                "model. Try model.reference=auto"
            ]
        return []


@dataclass(kw_only=True)
class AdapterConfig:
    """LoRA adapters: small trained matrices beside frozen weights."""

    kind: Literal["none", "lora", "dora", "rslora"] = "none"
    """Kind of a new adapter: `lora` (arXiv:2106.09685), `dora` with trained magnitudes
    (arXiv:2402.09353), or `rslora`, scaled by alpha / sqrt(rank) (arXiv:2312.03732). `none` trains
    every weight, or continues the adapter at `model.path`."""

    rank: Annotated[int, Ge(1)] = 16
    """Rank r of the adapter's matrices."""

    alpha: Annotated[float, Gt(0)] = 32.0
    """LoRA α: the adapter's output is scaled by alpha / rank."""

    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout rate of the adapter's inputs. Above 0 the result depends on the division of a step
    into micro-batches."""

    targets: str | list[str] = "all-linear"
    """Names of the layers that are adapted, as in `[q_proj, v_proj]`; `all-linear` adapts every
    linear layer but the output layer."""

    modules_to_save: list[str] = field(default_factory=list)
    """Layers that are trained fully and saved beside the adapter, as in `[embed_tokens, norm]`."""

    start: Literal["continue", "stack", "merge"] = "continue"
    """Use of an adapter at `model.path`: `continue` trains it further, `stack` freezes it under a
    new one, `merge` merges it into the base first."""

    def problems(self) -> list[str]:
        """List contradictions, one line each."""
        if self.kind != "none":
            return [] if self.targets else [_NO_TARGETS]
        default = AdapterConfig()
        shape = ("rank", "alpha", "dropout", "targets", "modules_to_save")
        given = [name for name in shape if getattr(self, name) != getattr(default, name)]
        return [
            f"adapter.{name}: given with adapter.kind=none, which makes no adapter. "
            "Try adapter=lora"
            for name in given
        ]


_NO_TARGETS = (
    "adapter.targets: got [], so that nothing would be trained; need names of layers. "
    "Try adapter.targets=all-linear"
)


@dataclass(kw_only=True)
class QuantConfig:
    """Quantization of frozen weights to 4 or 8 bits, under an adapter (needs the extra `quant`)."""

    kind: Literal["auto", "none", "nf4", "int8"] = "auto"
    """`nf4` is QLoRA's 4-bit type (arXiv:2305.14314), `int8` is LLM.int8 (arXiv:2208.07339); `auto`
    is the quantization that the adapter at `model.path` was trained with, else `none`."""

    double: bool = True
    """With `nf4`: quantize the scales too (double quantization), which saves 0.4 bits a weight."""

    output_layer: bool = False
    """Quantize the output layer too; log-probs dequantize it tile by tile. Not possible where it is
    tied to the input embeddings. With `quant.kind=auto` it follows the adapter at
    `model.path`."""

    def problems(self) -> list[str]:
        """List contradictions, one line each."""
        if not self.output_layer or self.kind in ("nf4", "int8"):
            return []
        return [
            f"quant.output_layer: got true with quant.kind={self.kind}; need nf4 or "
            "int8. Try quant=nf4"
        ]

    def not_of_scores(self) -> list[str]:
        """List the problem of a setting that a reward model does not have."""
        if not self.output_layer:
            return []
        return [
            "quant.output_layer: got true for a reward model, whose output layer is one row and "
            "is not quantized. Try quant.output_layer=false"
        ]


@dataclass(kw_only=True)
class LoadConfig:
    """Config of loading a model to train; shared by all stages."""

    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)

    kernels: Literal["auto", "none"] | list[Literal["triton", "chunked", "eager", "liger"]] = "auto"
    """Kernels of log-probs: `auto` is the first of triton (CUDA), chunked and eager that runs; a
    list, as in `[chunked]`, allows only those; `none` is `[eager]`. Kernels of norms, gated
    activations and rotary embeddings: `auto` is liger-kernel's (CUDA, extra `kernels`) where it
    supports the model; a list with `liger` requires it; `none` and other lists use the model's
    own."""

    scores: ClassVar[bool] = False
    """Whether the model is a reward model."""

    def problems(self) -> list[str]:
        """List contradictions, one line each."""
        found = self.model.missing()
        if self.kernels == []:
            found.append("kernels: got []; need at least one. Try kernels=auto")
        if self.scores:
            found += self.quant.not_of_scores()
        return found
