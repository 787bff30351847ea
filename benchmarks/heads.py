"""What maps hidden states to log-probs of targets: ours, the peers', and what products alone take.

Each is a function of hidden states [S, d], weight [V, d] and targets [S] that gives [S] nats.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.common import now
from rlhf_cli.kernels.lm_head import LMHead
from rlhf_cli.kernels.registry import LINEAR_LOGPROBS, Implementation

Logprobs = Callable[[Tensor, Tensor, Tensor], Tensor]
Shape = tuple[int, int, int]
"""Tokens, width, vocabulary."""

PEERS = {"trl": "TRL 1.16", "liger": "Liger 0.8.5"}
PRODUCTS = "products"
"""Stands for the four matrix products alone, forward and backward."""

TILES = (512, 2048)
"""Columns of the vocabulary at a time."""


def names(device: torch.device) -> list[str]:
    """All that runs on a device."""
    ours = [i.name for i in LINEAR_LOGPROBS if not i.unavailable_reason(device)]
    return [*ours, *PEERS, PRODUCTS]


def find(name: str) -> Logprobs:
    """The function of that name; its library is imported here."""
    if name == "trl":
        return _trl()
    if name == "liger":
        return _liger()
    return ours(next(i for i in LINEAR_LOGPROBS if i.name == name))


def ours(implementation: Implementation) -> Logprobs:
    """One of the registry."""

    def run(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        found = implementation.run(
            hidden, LMHead(weight), targets, temperature=1.0, want=frozenset()
        )
        return found.logp

    return run


def _trl() -> Logprobs:
    """As TRL's trainers call it, without the metrics they ask for beside."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as COLUMNS

    def run(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        logp: Tensor = ChunkedLogProbFunction.apply(
            hidden, weight, None, targets, 1.0, COLUMNS, None, 1.0, ()
        )[0]
        return logp

    return run


def _liger() -> Logprobs:
    """The one of its PPO losses, plain torch; its fused cross-entropy needs Triton."""
    from liger_kernel.chunked_loss import fused_linear_ppo as ppo

    columns = ppo._SELECTIVE_LOGPROB_VOCAB_CHUNK_SIZE

    def run(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        logp: Tensor = ppo._ChunkedSelectiveLogProbFunction.apply(
            hidden, weight, targets, None, 1.0, columns
        )
        return logp

    return run


def once(run: Logprobs, shape: Shape, dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of one forward and backward pass, gradients to hidden states and weight."""
    return pass_of(run, *operands(shape, dtype, device))[0]


def operands(
    shape: Shape, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight and targets: the same ones for the same shape."""
    tokens, width, vocab = shape
    torch.manual_seed(0)
    make = partial(torch.randn, dtype=dtype, device=device)
    hidden, weight = make(tokens, width), make(vocab, width).mul_(0.05)
    targets = torch.randint(0, vocab, (tokens,), device=device)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def pass_of(run: Logprobs, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[float, float]:
    """Seconds of one forward and backward pass, and the mean log-prob; gradients are dropped."""
    began = now(hidden.device)
    logp = run(hidden, weight, targets)
    logp.sum().backward()
    seconds = now(hidden.device) - began
    hidden.grad = weight.grad = None
    return seconds, float(logp.detach().mean())


def limit(hidden: Tensor, weight: Tensor) -> float:
    """Seconds of the four products alone, into memory that is there; the faster of two tilings."""
    return min(_products(hidden.detach(), weight.detach(), columns) for columns in TILES)


def _products(hidden: Tensor, weight: Tensor, columns: int) -> float:
    """Logits forward and again backward, and the gradients of hidden states and weight."""
    logits, product = hidden.new_zeros(len(hidden), columns), torch.empty_like(hidden)
    gradient = torch.zeros_like(weight)
    began = now(hidden.device)
    for tile, slope in zip(weight.split(columns), gradient.split(columns), strict=True):
        z = logits.view(-1)[: len(hidden) * len(tile)].view(len(hidden), len(tile))
        for _ in range(2):
            torch.mm(hidden, tile.t(), out=z)
        torch.mm(z, tile, out=product)
        torch.mm(z.t(), hidden, out=slope)
    return now(hidden.device) - began
