"""Checks at load: our own path through the model against the model's plain forward pass.

A few short rows, in fp32, before training. What fails is refused by name or falls back with the
reason: some architectures ignore the row layout and let rows see each other in silence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_cli.context import say
from rlhf_cli.data.batches import Rows
from rlhf_cli.errors import ModelError, first_line
from rlhf_cli.models.attention import ATTENTION
from rlhf_cli.models.policy import Policy, padded_attention

TOLERANCE = 1e-4
"""fp32, relative to the size of the values; rounding is under 1e-5."""


def probe(policy: Policy, *, may_fall_back: bool) -> None:
    """Compare log-probs and gradients with the plain model; print one line.

    Args:
        policy: in fp32, as loaded.
        may_fall_back: pad instead where flat rows are not exact.

    Raises:
        ModelError: the model's log-probs cannot be reproduced.
    """
    problem = _compare(policy)
    if problem and policy.flat and may_fall_back:
        say(f"probe: flat rows are not exact ({problem}); padding them instead")
        policy.flat = False
        policy.model.set_attn_implementation(padded_attention(policy.model))
        problem = _compare(policy)
    if problem:
        name = type(policy.model).__name__
        advice = "" if may_fall_back else ". Try model.attention=auto"
        raise ModelError(
            f"model.path: {name} gives other log-probs here than in its own forward pass "
            f"({problem}), so it cannot be trained{advice}"
        )
    say("probe: log-probs and gradients equal the model's own; rows kept apart")


def probe_rows(vocab_size: int, device: torch.device) -> Rows:
    """Three short rows of different lengths, every position scored."""
    lengths = torch.tensor([5, 9, 7])
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocab_size, (int(lengths.sum()),), generator=generator)
    ends = lengths.cumsum(0) - 1
    scored = torch.ones(len(tokens), dtype=torch.bool)
    scored[ends] = False
    return Rows(tokens, lengths, scored.nonzero().squeeze(1), torch.arange(3)).to(device)


def _compare(policy: Policy) -> str:
    """What differs, or empty."""
    vocab = policy.model.config.get_text_config().vocab_size
    rows = probe_rows(vocab, policy.device)
    try:
        if policy.flat and _last_row_sees_others(policy, rows):
            return "a row sees the rows before it"
        ours = policy(rows).logp
        our_gradient = _embedding_gradient(policy, ours)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        return f"{type(error).__name__}: {first_line(error)}"
    plain = _plain_logprobs(policy, rows)
    plain_gradient = _embedding_gradient(policy, plain)
    for name, got, expected in (
        ("log-probs", ours, plain),
        ("gradient", our_gradient, plain_gradient),
    ):
        got, expected = got.detach(), expected.detach()
        off = float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
        if not off <= TOLERANCE:
            return f"{name} differ by {off:.1e}, more than {TOLERANCE:.0e}"
    return ""


def _last_row_sees_others(policy: Policy, rows: Rows) -> bool:
    """Whether the last row's log-probs have any gradient at another row's tokens.

    Exact where values are not: with random weights a leak can be smaller than the tolerance.
    """
    embedded: list[Tensor] = []
    layer = policy.model.get_input_embeddings()
    hook = layer.register_forward_hook(lambda module, inputs, output: embedded.append(output))
    try:
        logp = policy(rows).logp
    finally:
        hook.remove()
    last = rows.row_of_scored == len(rows.lengths) - 1
    (gradient,) = torch.autograd.grad(logp[last].sum(), embedded[0])
    return bool(gradient[0, : rows.starts[-1]].any())


def _plain_logprobs(policy: Policy, rows: Rows) -> Tensor:
    """Each row alone through the model's own forward pass, with its own attention."""
    model = policy.model
    attention = model.config._attn_implementation
    if attention == ATTENTION:
        model.set_attn_implementation(padded_attention(model))
    try:
        parts = []
        for row in rows.tokens.split(rows.lengths.tolist()):
            logits = model(input_ids=row[None], use_cache=False).logits[0]
            logprobs = logits.float().log_softmax(-1)[:-1]
            parts.append(logprobs.gather(1, row[1:, None]).squeeze(1))
        return torch.cat(parts)
    finally:
        model.set_attn_implementation(attention)


def _embedding_gradient(policy: Policy, logprobs: Tensor) -> Tensor:
    """The gradient of a weighted sum, so that errors of different rows do not cancel."""
    weight = policy.model.get_input_embeddings().weight
    weights = torch.arange(1, len(logprobs) + 1, device=logprobs.device, dtype=logprobs.dtype)
    gradients: tuple[Tensor, ...] = torch.autograd.grad((logprobs * weights).sum(), weight)
    return gradients[0]
