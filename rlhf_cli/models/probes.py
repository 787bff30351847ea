"""Checks at load: our own path through the model against the model's plain forward pass.

A few short rows before training, in the type and with the attention kernel that will run. What
fails is refused by name or falls back with the reason: some architectures ignore the row layout and
let rows see each other in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rlhf_cli.context import precision_name, say
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.errors import KernelError, ModelError, first_line
from rlhf_cli.models.attention import ATTENTION, describe_attention, padded_attention
from rlhf_cli.models.batch_layout import LEAST, lay_out, pad
from rlhf_cli.models.liger import drop_layers, own_layers, taken
from rlhf_cli.models.quantize import is_quantized
from rlhf_cli.models.wrapper import ModelWrapper

TOLERANCE = 1e-4
"""fp32, of `_distance`; rounding is under 1e-5."""

ROUNDED_TOLERANCE = 0.15
"""bf16 and packed weights, of `_distance`: the same rows in another order round anew.

Rounding is under 0.015 in models of 2 layers and under 0.05 in one of 30. A softmax whose scale is
off by a fifth is 0.17 in log-probs and 0.4 in gradients, a row that sees another 0.3 to 1.
"""

LEAST_SPREAD = 0.01
"""Of the size of log-probs: what they differ by, at least; a model can give all tokens the same."""


def probe(policy: ModelWrapper, *, may_fall_back: bool, may_drop_layers: bool = True) -> None:
    """Compare what the model gives here, and gradients, with the plain model; print one line.

    Args:
        policy: its parameters are in the types of the forward passes to come.
        may_fall_back: pad instead where flat rows are not exact.
        may_drop_layers: take the model's own layers instead where liger's are not exact.

    Raises:
        KernelError: what liger's layers give is not what the model's own do.
        ModelError: what the model gives cannot be reproduced.
    """
    rows = probe_rows(policy.model.config.get_text_config().vocab_size, policy.device)
    problem = _compare_layers(policy, rows, may_drop=may_drop_layers)
    if problem and policy.flat and may_fall_back:
        say(f"probe: flat rows are not exact ({problem}); padding them instead")
        policy.flat = False
        policy.model.set_attn_implementation(padded_attention(policy.model))
        problem = _compare_layers(policy, rows, may_drop=may_drop_layers)
    if problem:
        name = type(policy.model).__name__
        advice = "" if may_fall_back else ". Try model.attention=auto"
        raise ModelError(
            f"model.path: {name} gives other {policy.gives} here than in its own forward pass "
            f"({problem}), so it cannot be trained{advice}"
        )
    dtype = policy.model.get_input_embeddings().weight.dtype
    attention = describe_attention(policy.model, policy.device, dtype)
    said = f"{precision_name(dtype)} with attention {attention}"
    say(f"probe: {policy.gives} and gradients equal the model's own in {said}; rows kept apart")
    policy.shares = _shares(policy)


def _shares(policy: ModelWrapper) -> bool:
    """Whether what the rows of an example begin with alike can be computed once; told where not."""
    config = policy.model.config.get_text_config()
    pair = probe_pair(config.vocab_size, policy.device)
    room = getattr(config, "max_position_embeddings", None) or len(pair.tokens)
    own = policy.flat and policy.model.config._attn_implementation == ATTENTION
    if not own or int(pair.lengths.max()) > room:
        return False
    problem = _compare(policy, pair)
    if problem:
        say(f"probe: a prompt computed once is not exact ({problem}); each response has its own")
    return not problem


def probe_rows(vocab_size: int, device: torch.device) -> TokenBatch:
    """Three short rows of different lengths, every position scored."""
    lengths = torch.tensor([5, 9, 7])
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocab_size, (int(lengths.sum()),), generator=generator)
    ends = lengths.cumsum(0) - 1
    scored = torch.ones(len(tokens), dtype=torch.bool)
    scored[ends] = False
    return TokenBatch(tokens, lengths, scored.nonzero().squeeze(1), torch.arange(3)).to(device)


def probe_pair(vocab_size: int, device: torch.device) -> TokenBatch:
    """Two rows of one example that begin alike, every position scored."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocab_size, (LEAST + 11,), generator=generator)
    first, second = tokens[: LEAST + 4], torch.cat([tokens[:LEAST], tokens[LEAST + 4 :]])
    lengths = torch.tensor([len(first), len(second)])
    scored = torch.cat([torch.arange(LEAST + 3), torch.arange(LEAST + 6) + LEAST + 4])
    rows = TokenBatch(torch.cat([first, second]), lengths, scored, torch.zeros(2, dtype=torch.long))
    return rows.to(device)


def _compare_layers(policy: ModelWrapper, rows: TokenBatch, *, may_drop: bool) -> str:
    """What differs, or empty; where it is liger's doing, its layers are dropped.

    Raises:
        KernelError: it is, and they may not be.
    """
    problem = _compare(policy, rows)
    if not problem or not taken(policy.model):
        return problem
    with own_layers(policy.model):
        if _compare(policy, rows):
            return problem
    if not may_drop:
        raise KernelError(
            f"kernels: liger's {taken(policy.model)} are not exact here ({problem}). "
            "Try kernels=auto"
        )
    say(f"probe: liger's {taken(policy.model)} are not exact ({problem}); the model's own instead")
    drop_layers(policy.model)
    return ""


def _compare(policy: ModelWrapper, rows: TokenBatch) -> str:
    """What differs, or empty."""
    index = lay_out(rows, share=True).index
    try:
        with embedded(policy) as inputs:
            ours, row_of_value = policy.values(rows)
        gradient = gradient_at(inputs, ours, retain=True)
        if not policy.flat:
            gradient = gradient[pad(rows, policy.padding_side)[1].flatten().bool()]
        last = row_of_value == len(rows.lengths) - 1
        apart = policy.flat and index is None
        if apart and _sees_others(ours[last], inputs[0], int(rows.starts[-1])):
            return "a row sees the rows before it"
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        return f"{type(error).__name__}: {first_line(error)}"
    ours = ours.detach()  # and with it the activations, before the plain pass makes its own
    plain, whole = plain_values(policy, rows)
    if index is not None:  # what is computed once has the gradients of all that follows it
        whole = torch.zeros_like(gradient).index_add_(0, index, whole)
    return unlike((ours, gradient), (plain, whole), policy.gives, tolerance(policy))


def tolerance(policy: ModelWrapper) -> float:
    """How far values may be apart, relative to their size, for the types they are computed in."""
    layer = policy.model.get_input_embeddings()
    rounded = is_quantized(policy.model) or layer.weight.dtype != torch.float32
    return ROUNDED_TOLERANCE if rounded else TOLERANCE


def unlike(
    ours: tuple[Tensor, Tensor], plain: tuple[Tensor, Tensor], gives: str, tolerance: float
) -> str:
    """What differs of values and gradients, or empty."""
    for name, got, expected in zip((gives, "gradient"), ours, plain, strict=True):
        off = _distance(got.detach(), expected.detach(), around_mean=name == "log-probs")
        if not off <= tolerance:
            return f"{name} differ by {off:.1e}, more than {tolerance:g}"
    return ""


def _distance(got: Tensor, expected: Tensor, *, around_mean: bool) -> float:
    """The norm of the difference, relative to that of what is expected.

    Args:
        got: any shape.
        expected: the same shape.
        around_mean: relative to how much the values differ among themselves. Log-probs of a model
            that knows little all lie near -ln V, which no fault of the layers moves.
    """
    size = expected.norm()
    if around_mean:
        size = torch.maximum((expected - expected.mean()).norm(), LEAST_SPREAD * size)
    return float((got - expected).norm() / size.clamp(min=1e-12))


@contextmanager
def embedded(policy: ModelWrapper) -> Iterator[list[Tensor]]:
    """The embedded tokens of each forward pass inside, as inputs that have a gradient."""
    found: list[Tensor] = []

    def keep(module: nn.Module, arguments: object, output: Tensor) -> Tensor:
        found.append(output.detach().requires_grad_(True))
        return found[-1]

    hook = policy.model.get_input_embeddings().register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()


def _sees_others(values: Tensor, embedded: Tensor, start: int) -> bool:
    """Whether the last row's values have any gradient at tokens before its start.

    Exact where values are not: with random weights a leak can be smaller than the tolerance.
    """
    (gradient,) = torch.autograd.grad(values.sum(), embedded)
    return bool(gradient[0, :start].any())


def plain_values(policy: ModelWrapper, rows: TokenBatch) -> tuple[Tensor, Tensor]:
    """Values and gradients of each row alone, by the model's own forward pass.

    Its own attention and layers compute. Each row's activations are freed before the next.
    """
    model = policy.model
    attention = model.config._attn_implementation
    if attention == ATTENTION:
        model.set_attn_implementation(padded_attention(model))
    try:
        values: list[Tensor] = []
        gradients: list[Tensor] = []
        for row in rows.tokens.split(rows.sizes):
            with own_layers(model), embedded(policy) as inputs:
                found = policy.plain_values(row)
            gradients.append(gradient_at(inputs, found, first=sum(map(len, values)) + 1))
            values.append(found.detach())
        return torch.cat(values), torch.cat(gradients)
    finally:
        model.set_attn_implementation(attention)


def gradient_at(
    embedded: list[Tensor], values: Tensor, *, first: int = 1, retain: bool = False
) -> Tensor:
    """[N, d]: of a weighted sum, so that errors of different rows do not cancel.

    Args:
        embedded: inputs [B, T, d].
        values: [V].
        first: weight of the first value; each later one weighs one more.
        retain: the graph is needed once more.
    """
    weights = torch.arange(first, first + len(values), device=values.device, dtype=values.dtype)
    gradients = torch.autograd.grad((values * weights).sum(), embedded, retain_graph=retain)
    return torch.cat([gradient.flatten(0, 1) for gradient in gradients])
