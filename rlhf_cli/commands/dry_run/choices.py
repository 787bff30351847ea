"""Values that keys left at `auto` take in a run, with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from rlhf_cli.commands.dry_run.section import Section
from rlhf_cli.data.config import DataConfig
from rlhf_cli.memory.device import Device
from rlhf_cli.memory.parts import Estimate
from rlhf_cli.memory.roles import reference_kind
from rlhf_cli.memory.training import MOST_TOKENS
from rlhf_cli.memory.weights import HeldModel
from rlhf_cli.models.config import DEFAULT_VOCAB_SIZE
from rlhf_cli.preflight.models import peak_learning_rate, positions, trains_adapter
from rlhf_cli.resources import SHIPPED


@dataclass(frozen=True)
class Choice:
    """A key that was left open, the value that it takes, and why."""

    key: str
    value: Any
    reason: str


def training_choices(
    stage: str, cfg: Any, policy: HeldModel, estimate: Estimate, device: Device
) -> list[Choice]:
    """List the choices of a training stage."""
    return [
        *_learning_rate(stage, cfg),
        *precision_choice("train.precision", cfg.train.precision, device),
        *_micro_batches(cfg, estimate, device),
        *_data_choices(cfg),
        *model_choices(cfg.model),
        *_reference(cfg),
        *_quantization(cfg, policy),
        *_kernels(cfg, device, policy),
        *_rollout(cfg, estimate),
        *_processes(cfg, estimate),
    ]


def _learning_rate(stage: str, cfg: Any) -> Iterator[Choice]:
    if cfg.train.lr == "auto":
        what = "an adapter" if trains_adapter(cfg) else "training all weights"
        yield Choice("train.lr", peak_learning_rate(cfg), f"the default of {stage} for {what}")


def precision_choice(key: str, given: str, device: Device) -> Iterator[Choice]:
    """The compute type where the key is `auto`."""
    if given == "auto":
        has = "has" if device.bf16 else "has no"
        value = "bf16" if device.bf16 else "fp32"
        yield Choice(key, value, f"the {device.name} {has} bf16 arithmetic")


def _micro_batches(cfg: Any, estimate: Estimate, device: Device) -> Iterator[Choice]:
    if cfg.train.micro_batch_tokens:
        return
    tokens = estimate.micro_batch_tokens
    most = tokens == MOST_TOKENS[device.kind]
    reason = "larger passes are not faster" if most else "the most that fits the memory"
    yield Choice("train.micro_batch_tokens", tokens, reason)


def _data_choices(cfg: Any) -> Iterator[Choice]:
    room = positions(cfg.model)
    if room == cfg.data.max_length < DataConfig.max_length:
        yield Choice("data.max_length", room, "the model's positions")
    if cfg.data.eval == "auto":
        shipped = cfg.data.path == SHIPPED
        value, reason = ("tiny", "the shipped test rows") if shipped else ("none", "no rows named")
        yield Choice("data.eval", value, reason)


def model_choices(model: Any) -> Iterator[Choice]:
    """Choices of a model's weights, tokenizer and attention."""
    if model.init == "auto":
        scratch = model.from_scratch
        value = "scratch" if scratch else "pretrained"
        reason = "tiny has no trained weights" if scratch else "model.path holds weights"
        yield Choice("model.init", value, reason)
    if not (model.tokenizer or model.path or model.tokenizer_vocab_size):
        yield Choice("model.tokenizer_vocab_size", DEFAULT_VOCAB_SIZE, "no tokenizer is named")
    if model.attention == "auto":
        yield Choice("model.attention", "per_row", "sdpa where a check at loading finds it inexact")


def _reference(cfg: Any) -> Iterator[Choice]:
    if getattr(cfg.model, "reference", "") != "auto":
        return
    kind = reference_kind(cfg)
    reasons = {
        "adapter_off": "the same weights without the new adapter",
        "stored": "its log-probs are computed once, before training",
        "copy": "a frozen copy; responses are new in each step",
        "none": "the loss compares with none",
    }
    yield Choice("model.reference", kind, reasons[kind])


def _quantization(cfg: Any, policy: HeldModel) -> Iterator[Choice]:
    if cfg.quant.kind == "auto" and policy.shape.quant != "none":
        yield Choice("quant.kind", policy.shape.quant, "as its adapter was trained")


def _kernels(cfg: Any, device: Device, policy: HeldModel) -> Iterator[Choice]:
    if cfg.kernels != "auto":
        return
    if device.kind == "cpu":
        yield Choice("kernels", "chunked", "no GPU")
    elif not find_spec("triton"):
        yield Choice("kernels", "chunked", "triton is not installed here")
    elif cfg.quant.output_layer and policy.quantized:
        yield Choice("kernels", "chunked", "the output layer is quantized")
    else:
        yield Choice("kernels", "triton", "CUDA")


def _rollout(cfg: Any, estimate: Estimate) -> Iterator[Choice]:
    if cfg.generates and cfg.rollout.is_used and cfg.rollout.correction == "auto":
        reuses = cfg.reuses_logprobs
        reason = "rollout_logprobs=reuse" if reuses else "servers generate the responses"
        yield Choice("rollout.correction", "none" if reuses else cfg.rollout.corrects, reason)
    if estimate.slots and not cfg.max_num_seqs:
        responses = cfg.train.batch_size * cfg.samples_per_prompt
        yield Choice("max_num_seqs", estimate.slots, f"of {responses} responses in a rollout")


def _processes(cfg: Any, estimate: Estimate) -> Iterator[Choice]:
    if cfg.launch.processes == 0:
        yield Choice("launch.processes", estimate.processes, "one for each GPU found")


def choice_section(found: Sequence[Choice]) -> Section:
    """Lines about the values that were left open."""
    lines = [(one.key, f"{one.value}  ({one.reason})") for one in found]
    facts = {one.key: {"value": one.value, "reason": one.reason} for one in found}
    return Section("chosen", lines, facts)
