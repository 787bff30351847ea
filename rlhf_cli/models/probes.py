"""Probes at load: compare a `ModelWrapper` with the model's own forward pass in transformers.

They compute a few short rows in the type and with the attention that training will use. A model
that fails is refused, or falls back with the reason printed: some architectures ignore the row
layout and silently let rows see each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rlhf_cli.console import logger
from rlhf_cli.context import precision_name
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.errors import KernelError, ModelError, first_line
from rlhf_cli.models.attention import ATTENTION, describe_attention, padded_attention
from rlhf_cli.models.batch_layout import MIN_SHARED_TOKENS, build_flat_batch, pad
from rlhf_cli.models.liger import liger_layers, remove_liger, without_liger
from rlhf_cli.models.quantize import is_quantized
from rlhf_cli.models.wrapper import ModelWrapper

TOLERANCE = 1e-4
"""Largest `_distance` in fp32, where rounding is under 1e-5."""

ROUNDED_TOLERANCE = 0.15
"""Largest `_distance` in bf16 or with quantized weights, where another order rounds anew.

Rounding is under 0.015 in models of 2 layers and under 0.05 in one of 30. A softmax scale that is
off by a fifth gives 0.17 in log-probs and 0.4 in gradients, a row that sees another 0.3 to 1.
"""

MIN_SPREAD = 0.01
"""Least spread of log-probs, as a share of their norm; a model can give all tokens the same."""


def probe(policy: ModelWrapper, *, may_fall_back: bool, may_drop_layers: bool = True) -> None:
    """Compare outputs and gradients with the plain model's; print one line.

    Args:
        policy: its parameters are in the types of the forward passes to come.
        may_fall_back: pad the rows where flat rows are not exact.
        may_drop_layers: use the model's own layers where liger's are not exact.

    Raises:
        KernelError: liger's layers are not exact, and may not be dropped.
        ModelError: the outputs differ from the plain model's.
    """
    rows = probe_rows(policy.model.config.get_text_config().vocab_size, policy.device)
    problem = _compare_layers(policy, rows, may_drop=may_drop_layers)
    if problem and policy.flat and may_fall_back:
        logger.info(f"probe: flat rows are not exact ({problem}); padding them instead")
        policy.flat = False
        policy.model.set_attn_implementation(padded_attention(policy.model))
        problem = _compare_layers(policy, rows, may_drop=may_drop_layers)
    if problem:
        name = type(policy.model).__name__
        advice = "" if may_fall_back else ". Try model.attention=auto"
        raise ModelError(
            f"model.path: {name} gives other {policy.output_name} here than in its own forward "
            f"pass ({problem}), so it cannot be trained{advice}"
        )
    dtype = policy.compute_dtype
    attention = describe_attention(policy.model, policy.device, dtype)
    said = f"{precision_name(dtype)} with attention {attention}"
    outputs = f"{policy.output_name} and gradients"
    logger.info(f"probe: {outputs} equal the model's own in {said}; rows kept apart")
    policy.shares_prefixes = _can_share_prefixes(policy)


def _can_share_prefixes(policy: ModelWrapper) -> bool:
    """Probe whether a shared prefix can be computed once; print a reason where it cannot."""
    config = policy.model.config.get_text_config()
    pair = probe_pair(config.vocab_size, policy.device)
    room = getattr(config, "max_position_embeddings", None) or len(pair.tokens)
    own = policy.flat and policy.model.config._attn_implementation == ATTENTION
    if not own or int(pair.lengths.max()) > room:
        return False
    problem = _compare(policy, pair)
    if problem:
        logger.info(
            f"probe: a prompt computed once is not exact ({problem}); each response has its own"
        )
    return not problem


def probe_rows(vocab_size: int, device: torch.device) -> TokenBatch:
    """Build three short rows of different lengths, every position scored."""
    lengths = torch.tensor([5, 9, 7])
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocab_size, (int(lengths.sum()),), generator=generator)
    ends = lengths.cumsum(0) - 1
    scored = torch.ones(len(tokens), dtype=torch.bool)
    scored[ends] = False
    return TokenBatch(tokens, lengths, scored.nonzero().squeeze(1), torch.arange(3)).to(device)


def probe_pair(vocab_size: int, device: torch.device) -> TokenBatch:
    """Build two rows of one example with a shared prefix, every position scored."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocab_size, (MIN_SHARED_TOKENS + 11,), generator=generator)
    first, second = (
        tokens[: MIN_SHARED_TOKENS + 4],
        torch.cat([tokens[:MIN_SHARED_TOKENS], tokens[MIN_SHARED_TOKENS + 4 :]]),
    )
    lengths = torch.tensor([len(first), len(second)])
    scored = torch.cat(
        [
            torch.arange(MIN_SHARED_TOKENS + 3),
            torch.arange(MIN_SHARED_TOKENS + 6) + MIN_SHARED_TOKENS + 4,
        ]
    )
    rows = TokenBatch(torch.cat([first, second]), lengths, scored, torch.zeros(2, dtype=torch.long))
    return rows.to(device)


def _compare_layers(policy: ModelWrapper, rows: TokenBatch, *, may_drop: bool) -> str:
    """Compare outputs; drop liger's layers where they alone differ. Return the problem, or empty.

    Raises:
        KernelError: liger's layers differ and may not be dropped.
    """
    problem = _compare(policy, rows)
    if not problem or not liger_layers(policy.model):
        return problem
    with without_liger(policy.model):
        if _compare(policy, rows):
            return problem
    if not may_drop:
        raise KernelError(
            f"kernels: liger's {liger_layers(policy.model)} are not exact here ({problem}). "
            "Try kernels=auto"
        )
    replaced = liger_layers(policy.model)
    logger.info(f"probe: liger's {replaced} are not exact ({problem}); the model's own instead")
    remove_liger(policy.model)
    return ""


def _compare(policy: ModelWrapper, rows: TokenBatch) -> str:
    """Compare outputs and gradients of rows; return what differs, or empty."""
    index = build_flat_batch(rows, share=True).index
    try:
        with embedded(policy) as inputs:
            ours, row_of_value = policy.probe_outputs(rows)
        gradient = gradient_at(inputs, ours, retain=True)
        if not policy.flat:
            gradient = gradient[pad(rows, policy.padding_side)[1].flatten().bool()]
        last = row_of_value == len(rows.lengths) - 1
        apart = policy.flat and index is None
        if apart and _sees_others(ours[last], inputs[0], int(rows.row_starts[-1])):
            return "a row sees the rows before it"
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        return f"{type(error).__name__}: {first_line(error)}"
    ours = ours.detach()  # frees the activations before the plain pass makes its own
    plain, whole = plain_outputs(policy, rows)
    if index is not None:  # a shared prefix has the gradients of all rows that continue it
        whole = torch.zeros_like(gradient).index_add_(0, index, whole)
    return unlike((ours, gradient), (plain, whole), policy.output_name, tolerance(policy))


def tolerance(policy: ModelWrapper) -> float:
    """Return the largest relative difference that the model's types allow."""
    rounded = is_quantized(policy.model) or policy.compute_dtype != torch.float32
    return ROUNDED_TOLERANCE if rounded else TOLERANCE


def unlike(
    ours: tuple[Tensor, Tensor], plain: tuple[Tensor, Tensor], output_name: str, tolerance: float
) -> str:
    """Compare outputs and gradients; return what differs, or empty."""
    for name, got, expected in zip((output_name, "gradient"), ours, plain, strict=True):
        off = _distance(got.detach(), expected.detach(), around_mean=name == "log-probs")
        if not off <= tolerance:
            return f"{name} differ by {off:.1e}, more than {tolerance:g}"
    return ""


def _distance(got: Tensor, expected: Tensor, *, around_mean: bool) -> float:
    """Compute the norm of the difference, relative to that of the expected values.

    Args:
        got: any shape.
        expected: the same shape.
        around_mean: relative to the spread of the expected values. Log-probs of an untrained model
            all lie near -ln V, which no error of the layers changes.
    """
    size = expected.norm()
    if around_mean:
        size = torch.maximum((expected - expected.mean()).norm(), MIN_SPREAD * size)
    return float((got - expected).norm() / size.clamp(min=1e-12))


@contextmanager
def embedded(policy: ModelWrapper) -> Iterator[list[Tensor]]:
    """Collect the embedded tokens of each forward pass inside the context, as leaf tensors."""
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
    """Return whether the last row's outputs have a gradient at tokens before its start.

    Exact where outputs are not: with random weights a leak can be smaller than the tolerance.
    """
    (gradient,) = torch.autograd.grad(values.sum(), embedded)
    return bool(gradient[0, :start].any())


def plain_outputs(policy: ModelWrapper, rows: TokenBatch) -> tuple[Tensor, Tensor]:
    """Compute outputs and gradients of each row alone, by the model's own forward pass.

    It uses transformers' attention and the model's own layers. The activations of each row are
    freed before the next.
    """
    model = policy.model
    attention = model.config._attn_implementation
    if attention == ATTENTION:
        model.set_attn_implementation(padded_attention(model))
    try:
        values: list[Tensor] = []
        gradients: list[Tensor] = []
        for row in rows.tokens.split(rows.row_lengths):
            with without_liger(model), embedded(policy) as inputs:
                found = policy.plain_outputs(row)
            gradients.append(gradient_at(inputs, found, first=sum(map(len, values)) + 1))
            values.append(found.detach())
        return torch.cat(values), torch.cat(gradients)
    finally:
        model.set_attn_implementation(attention)


def gradient_at(
    embedded: list[Tensor], values: Tensor, *, first: int = 1, retain: bool = False
) -> Tensor:
    """Compute the gradient [N, d] of a weighted sum, so that errors of rows do not cancel.

    Args:
        embedded: inputs [B, T, d].
        values: outputs [V].
        first: weight of the first output; each later one weighs one more.
        retain: keep the graph for another backward pass.
    """
    weights = torch.arange(first, first + len(values), device=values.device, dtype=values.dtype)
    gradients = torch.autograd.grad((values * weights).sum(), embedded, retain_graph=retain)
    return torch.cat([gradient.flatten(0, 1) for gradient in gradients])
