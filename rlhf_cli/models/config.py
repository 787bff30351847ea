from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from rlhf_cli.config.schema import FilePath, Ge, Gt, Lt, ModelPath
from rlhf_cli.resources import SHIPPED

MIN_VOCAB_SIZE = 256 + 5
"""Of a trained tokenizer: every byte, and the tokens of ends, padding and chat roles."""

Attention = Literal[
    "auto", "per_row", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"
]

FLASH = {
    "flash_attention_2": ("flash_attn", "pip install flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "the hopper folder of Dao-AILab/flash-attention"),
}
"""The module that each is in, and where that comes from."""

LIGER = "liger"
"""In `kernels`: liger-kernel's layers in place of the model's own."""

LIGER_MODULE = "liger_kernel"


@dataclass(kw_only=True)
class ModelConfig:
    """Which model, which tokenizer, and how its weights are held."""

    path: Annotated[str, ModelPath("revision", "base")] = ""
    """Model folder, run folder, hub id, or `tiny` (shipped, random weights)."""

    revision: str = ""
    """Branch, tag or commit of the hub id at `path`; empty takes its default branch."""

    base: Annotated[str, ModelPath("base_revision")] = ""
    """With an adapter at `path`: the model it stands on, where that is no longer where the adapter
    says."""

    base_revision: str = ""
    """Branch, tag or commit of the adapter's base; empty takes the one it was trained on."""

    init: Literal["auto", "pretrained", "scratch"] = "auto"
    """`pretrained` needs weights at `path`, `scratch` draws random ones from its config; `auto` is
    `scratch` for `tiny` and `pretrained` for everything else."""

    architecture: dict[str, Any] = field(default_factory=dict)
    """With `init=scratch` and no `path`: a transformers config as keys, `model_type` first. Empty
    takes an 8 M parameter Llama."""

    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Type of the weights in the result folder; `auto` is the type they were computed in."""

    attention: Attention = "auto"
    """`per_row` keeps flat rows apart without padding, and so do `flash_attention_2`,
    `flash_attention_3` (where installed) and `flex_attention`, all on CUDA; `sdpa` and `eager`
    pad. `auto` takes `per_row` where the load probe finds it exact, else `sdpa`."""

    tokenizer: Annotated[str, ModelPath("tokenizer_revision")] = ""
    """Tokenizer folder or hub id; empty takes the one at `path`."""

    tokenizer_revision: str = ""
    """Branch, tag or commit of the hub id at `tokenizer`."""

    tokenizer_vocab_size: Annotated[int, Ge(0)] = 0
    """Train a byte-level BPE of this many tokens on the training text; needs `init=scratch` and at
    least 261. 0 trains none, save that `init=scratch` without any tokenizer takes 8192."""

    chat_template: Annotated[str, FilePath()] = ""
    """Jinja file that replaces the tokenizer's chat template."""

    trust_remote_code: bool = False
    """Run Python code that ships with a hub model."""

    @property
    def from_scratch(self) -> bool:
        """Whether the weights are drawn at random."""
        return self.init == "scratch" or (self.init == "auto" and self.path == SHIPPED)

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
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
        """The line for a model that is not named and not made from nothing."""
        if self.path or self.init == "scratch":
            return []
        return [
            "model.path: none given; need a model folder, run folder or hub id, or "
            "model.init=scratch. Try model=runs/sft, or model=tiny (shipped, random weights)"
        ]


@dataclass(kw_only=True)
class TrainedModelConfig(ModelConfig):
    """A model that is trained."""

    freeze: list[str] = field(default_factory=list)
    """In full training: layers that stay as they are, as in `[embed_tokens, layers.0]`. They are
    held and saved in the compute type."""


HELD = ("auto", "copy", "adapter_off", "stored", "none")
"""What `model.reference` says of the model itself."""


@dataclass(kw_only=True)
class ComparedModelConfig(TrainedModelConfig):
    """A model that is compared with a reference."""

    reference: Annotated[str, ModelPath("reference_revision", words=HELD)] = "auto"
    """What the policy is held to: `copy`, a frozen copy in memory; `adapter_off`, the same weights
    without the new adapter; `stored`, the model as it starts, its log-probs computed once; `none`;
    or a model folder, run folder or hub id. `auto` is `adapter_off` with a new adapter, else
    `stored`."""

    reference_revision: str = ""
    """Branch, tag or commit of the hub id at `reference`."""

    held: ClassVar[tuple[str, ...]] = HELD
    """What `reference` says of the model itself; anything else is a path."""

    def reference_problems(self, adapter: str) -> list[str]:
        """Contradictions of `reference`, one line each.

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
    """Adapters: a few small trained matrices beside frozen weights."""

    kind: Literal["none", "lora", "dora", "rslora"] = "none"
    """`lora` is arXiv:2106.09685, `dora` adds magnitudes (arXiv:2402.09353), `rslora` scales by
    alpha / sqrt(rank) (arXiv:2312.03732). `none` trains every weight, or goes on with the adapter
    at `model.path`."""

    rank: Annotated[int, Ge(1)] = 16
    """Inner width of the matrices."""

    alpha: Annotated[float, Gt(0)] = 32.0
    """The adapter's output is scaled by alpha / rank."""

    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the adapter's inputs that are dropped in training. Above 0 the result depends on how
    a step is cut into micro-batches."""

    targets: str | list[str] = "all-linear"
    """Names of the layers that get one, as in `[q_proj, v_proj]`; `all-linear` takes every linear
    layer but the output layer."""

    modules_to_save: list[str] = field(default_factory=list)
    """Layers that are trained whole and saved beside the adapter, as in `[embed_tokens, norm]`."""

    start: Literal["continue", "stack", "merge"] = "continue"
    """What becomes of the adapter that `model.path` brings: `continue` trains it on, `stack`
    freezes it under a new one, `merge` adds it to the weights first."""

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
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
    """Frozen weights in 4 or 8 bits, under a trained adapter (needs the extra `quant`)."""

    kind: Literal["auto", "none", "nf4", "int8"] = "auto"
    """`nf4` is QLoRA's 4-bit type (arXiv:2305.14314), `int8` is LLM.int8 (arXiv:2208.07339);
    `auto` takes what the adapter at `model.path` was trained on, else `none`."""

    double: bool = True
    """With `nf4`: quantize the scales too, which saves 0.4 bits a weight."""

    output_layer: bool = False
    """Pack the output layer too, which log-probs then unpack a tile at a time. Not where it shares
    its weights with the input embeddings. With `quant.kind=auto` it is as the adapter at
    `model.path` was trained."""

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        if not self.output_layer or self.kind in ("nf4", "int8"):
            return []
        return [
            f"quant.output_layer: got true with quant.kind={self.kind}; need what to pack it to, "
            "nf4 or int8. Try quant=nf4"
        ]

    def not_of_scores(self) -> list[str]:
        """The line for what a reward model does not have."""
        if not self.output_layer:
            return []
        return [
            "quant.output_layer: got true for a reward model, whose output layer is one row and "
            "stays whole. Try quant.output_layer=false"
        ]


@dataclass(kw_only=True)
class LoadConfig:
    """What every command has that trains a model."""

    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)

    kernels: Literal["auto", "none"] | list[Literal["triton", "chunked", "eager", "liger"]] = "auto"
    """What computes log-probs: `auto` takes the first of triton (CUDA), chunked and eager that runs
    here; a list, as in `[chunked]`, allows only some of them; `none` is `[eager]`. And what
    computes norms, gated activations and rotary positions: `auto` takes liger-kernel's (CUDA, extra
    `kernels`) where it knows the model; a list with `liger` insists on it; `none` and other lists
    take the model's own."""

    scores: ClassVar[bool] = False
    """Whether the model gives scores, not text."""

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        found = self.model.missing()
        if self.kernels == []:
            found.append("kernels: got []; need at least one. Try kernels=auto")
        if self.scores:
            found += self.quant.not_of_scores()
        return found
