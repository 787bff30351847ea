"""Divergence of a student from a teacher over the whole vocabulary, a chunk of tokens at a time.

Both logits of a chunk are held at once, never [S, V]. The gradient is computed with the value: the
result is a sum, so its backward pass only multiplies, and the teacher's output layer, which other
processes may share, is read in the forward pass alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.kernels.eager import compute_logits
from rlhf_cli.kernels.lm_head import LMHead, QuantizedWeight
from rlhf_cli.losses.distillation import Divergence, divergence_gradient, token_divergence

CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
"""Workspace of a chunk by device: its [tokens, V] tensors in fp32."""

MIN_CHUNK = 16
"""Tokens of a chunk at least: each chunk reads both output layers once."""

TENSORS = 7
"""[tokens, V] fp32 tensors at once: logits, log-probs, and terms of value and gradient."""

WANTS = frozenset({"reverse_kl", "forward_kl", "entropy", "agreement"})


@dataclass(frozen=True)
class OutputStates:
    """Inputs of an output layer, and the layer.

    Attributes:
        hidden: [S, d], hidden states at scored positions.
        head: output layer over V token ids.
    """

    hidden: Tensor
    head: LMHead


@dataclass(frozen=True)
class DivergenceSum:
    """Divergence of S tokens.

    Attributes:
        total: scalar, nats, sum over the tokens, with the student's gradient.
        tokens: [S] fp32, nats, of each token; no gradient.
        extra: values [S] that were asked for by name; no gradient.
        logp: [S] fp32, nats, log-prob of each target under the student, with its gradient; none
            unless asked for.
    """

    total: Tensor
    tokens: Tensor
    extra: Mapping[str, Tensor]
    logp: Tensor | None = None


def chunk_tokens(vocab: int, device: str) -> int:
    """Tokens whose logits are held at once.

    Args:
        vocab: rows of the output layer.
        device: its type.
    """
    budget = CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"])
    return max(MIN_CHUNK, budget // (TENSORS * 4 * vocab))


def linear_divergence(
    student: OutputStates,
    teacher: OutputStates,
    divergence: Divergence,
    want: Iterable[str] = (),
) -> DivergenceSum:
    """Sum of `token_divergence` between two models' distributions of the next token.

    Args:
        student: its hidden states, and its output layer's weight and bias if they are trained, get
            gradients.
        teacher: over the same token ids; constant.
        divergence: kind, and temperature of both logits.
        want: any of `reverse_kl`, `forward_kl`, `entropy` of the student (nats, at the same
            temperature) and `agreement`, 1 where both have the same most likely token.

    Raises:
        ValueError: an unknown name in `want`, or output layers of different sizes.
    """
    wanted = sorted(set(want))
    if set(wanted) - WANTS:
        raise ValueError(f"want: got {wanted}; need some of {sorted(WANTS)}")
    if len(student.head.weight) != len(teacher.head.weight):
        sizes = f"{len(student.head.weight)} and {len(teacher.head.weight)}"
        raise ValueError(f"the output layers have {sizes} rows; need as many")
    weight = student.head.weight if isinstance(student.head.weight, Tensor) else None
    total, tokens, *extra = _ChunkedDivergence.apply(  # type: ignore[no-untyped-call]
        student.hidden,
        weight,
        student.head.bias,
        student.head,
        teacher,
        divergence,
        wanted,
        torch.is_grad_enabled(),
    )
    return DivergenceSum(total, tokens, dict(zip(wanted, extra, strict=True)))


class _ChunkedDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        head: LMHead,
        teacher: OutputStates,
        divergence: Divergence,
        want: list[str],
        differentiable: bool,
    ) -> tuple[Tensor, ...]:
        values: dict[str, list[Tensor]] = {name: [] for name in ("tokens", *want)}
        needs = [differentiable and need for need in ctx.needs_input_grad[:3]]
        gradients = _Gradients.start(needs, hidden, weight, bias)
        size = chunk_tokens(len(head.weight), hidden.device.type)
        for low in range(0, len(hidden), size):
            part = slice(low, low + size)
            logits = compute_logits(hidden[part], head, divergence.temperature)
            theirs = compute_logits(teacher.hidden[part], teacher.head, divergence.temperature)
            own, theirs = logits.log_softmax(-1), theirs.log_softmax(-1)
            values["tokens"].append(token_divergence(own, theirs, divergence))
            for name in want:
                values[name].append(_extra(name, own, theirs, divergence))
            if gradients.needed:
                of_logits = divergence_gradient(own, theirs, divergence)
                of_raw = _before_scales(of_logits, logits, head, divergence.temperature)
                gradients.add(part, of_raw, hidden[part], head.weight)
        found = [torch.cat(parts) if parts else _empty(hidden) for parts in values.values()]
        ctx.save_for_backward(*gradients.finished())
        ctx.mark_non_differentiable(*found)
        return found[0].sum(), *found

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        own = [
            None if gradient is None else gradient * upstream.to(gradient.dtype)
            for gradient in ctx.saved_tensors
        ]
        return (*own, None, None, None, None, None)


def _empty(hidden: Tensor) -> Tensor:
    dtype = hidden.dtype if hidden.dtype == torch.float64 else torch.float32
    return torch.zeros(0, dtype=dtype, device=hidden.device)


def _extra(name: str, student: Tensor, teacher: Tensor, divergence: Divergence) -> Tensor:
    if name == "agreement":
        return (student.argmax(-1) == teacher.argmax(-1)).to(student.dtype)
    if name == "entropy":
        return -(student.exp() * student).sum(-1)
    return token_divergence(student, teacher, Divergence(name, temperature=divergence.temperature))


def _before_scales(gradient: Tensor, logits: Tensor, head: LMHead, temperature: float) -> Tensor:
    """Gradient of the raw logits: the chain rule through temperature, soft cap and scale."""
    if head.softcap is not None:
        gradient = gradient * (1 - (logits * (temperature / head.softcap)).square())
    factor = head.scale / temperature
    return gradient if factor == 1.0 else gradient * factor


@dataclass
class _Gradients:
    """Gradients of hidden states, weight and bias, summed over chunks; none where not needed.

    Those of weight and bias are summed in fp32.
    """

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    dtypes: tuple[torch.dtype | None, ...]

    @classmethod
    def start(
        cls, needs: list[bool], hidden: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> _Gradients:
        given = (hidden, weight, bias)
        of_hidden, of_weight, of_bias = (
            torch.zeros_like(tensor, dtype=_wide(tensor)) if tensor is not None and need else None
            for tensor, need in zip(given, needs, strict=True)
        )
        dtypes = tuple(None if tensor is None else tensor.dtype for tensor in given)
        return cls(of_hidden, of_weight, of_bias, dtypes)

    @property
    def needed(self) -> bool:
        return any(one is not None for one in (self.hidden, self.weight, self.bias))

    def add(
        self, part: slice, of_raw: Tensor, hidden: Tensor, weight: Tensor | QuantizedWeight
    ) -> None:
        """Add a chunk's share.

        Args:
            part: its tokens.
            of_raw: [c, V], gradient of the raw logits.
            hidden: [c, d].
            weight: [V, d], of the output layer.
        """
        narrow = of_raw.to(hidden.dtype)
        if self.hidden is not None:
            self.hidden[part] = _times_weight(narrow, weight)
        if self.weight is not None:
            self.weight += narrow.t() @ hidden
        if self.bias is not None:
            self.bias += of_raw.sum(0)

    def finished(self) -> list[Tensor | None]:
        """The gradients in the types of what they belong to."""
        found = (self.hidden, self.weight, self.bias)
        return [
            None if one is None else one.to(dtype)
            for one, dtype in zip(found, self.dtypes, strict=True)
        ]


def _wide(tensor: Tensor) -> torch.dtype:
    return tensor.dtype if tensor.dtype == torch.float64 else torch.float32


def _times_weight(gradient: Tensor, weight: Tensor | QuantizedWeight) -> Tensor:
    """[c, d]: gradient [c, V] times the weight [V, d]; a quantized one in row ranges."""
    if isinstance(weight, Tensor):
        return gradient @ weight
    dtype = gradient.dtype
    found = gradient.new_zeros(len(gradient), weight.shape[1])
    for start, stop in weight.row_ranges(gradient.element_size()):
        found += gradient[:, start:stop] @ weight.dequantize(start, stop, dtype)
    return found
