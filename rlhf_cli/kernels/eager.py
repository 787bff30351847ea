"""Reference implementation of `linear_logprobs`: full logits in fp32, plain autograd."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rlhf_cli.kernels.lm_head import LMHead, TokenLogprobs


def compute_logits(hidden: Tensor, head: LMHead, temperature: float = 1.0) -> Tensor:
    """Logits [S, V] in fp32 (fp64 for fp64 input), as the model's own forward computes them."""
    raw = _project(hidden, head)
    raw = raw.float() if raw.dtype != torch.float64 else raw
    scaled = raw * head.scale
    if head.softcap is not None:
        scaled = head.softcap * torch.tanh(scaled / head.softcap)
    return scaled / temperature


def _project(hidden: Tensor, head: LMHead) -> Tensor:
    """Raw logits [S, V] in the compute type; a quantized weight is dequantized in row ranges."""
    weight, bias = head.weight, head.bias
    if isinstance(weight, Tensor):
        return F.linear(hidden, weight, bias)
    parts = [
        F.linear(
            hidden,
            weight.dequantize(start, stop, hidden.dtype),
            None if bias is None else bias[start:stop],
        )
        for start, stop in weight.row_ranges(hidden.element_size())
    ]
    return torch.cat(parts, -1)


def linear_logprobs(
    hidden: Tensor, head: LMHead, targets: Tensor, *, temperature: float, want: frozenset[str]
) -> TokenLogprobs:
    """Reference for every faster implementation; holds several [S, V] tensors at once."""
    z = compute_logits(hidden, head, temperature)
    logprobs = z.log_softmax(-1)
    probs = logprobs.exp()
    return TokenLogprobs(
        logp=logprobs.gather(1, targets[:, None]).squeeze(1),
        entropy=-(probs * logprobs).sum(-1) if "entropy" in want else None,
        lse=z.logsumexp(-1) if "lse" in want else None,
        sum_sq=probs.detach().square().sum(-1) if "sum_sq" in want else None,
        top1=z.argmax(-1) == targets if "top1" in want else None,
    )
