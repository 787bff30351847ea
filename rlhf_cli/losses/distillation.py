"""Distillation: divergences of a student's token distributions from a teacher's, per token."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, log1p

import torch
from torch import Tensor

DIVERGENCES = ("reverse_kl", "forward_kl", "jsd")


@dataclass(frozen=True)
class Divergence:
    """A divergence of the student's distribution q from the teacher's distribution p.

    Attributes:
        kind: `reverse_kl` is KL(q || p), as in MiniLLM (Gu et al. 2024, arXiv:2306.08543);
            `forward_kl` is KL(p || q), of supervised distillation (Hinton et al. 2015,
            arXiv:1503.02531); `jsd` is the generalized Jensen-Shannon divergence of GKD (Agarwal et
            al. 2024, arXiv:2306.13649, eq. 1).
        jsd_beta: β of jsd, between 0 and 1: weight of the teacher in the mixture. jsd / β goes to
            forward KL for β towards 0, and jsd / (1 - β) to reverse KL for β towards 1.
        temperature: > 0, no unit; divides the logits of both.
    """

    kind: str
    jsd_beta: float = 0.5
    temperature: float = 1.0


def token_divergence(student: Tensor, teacher: Tensor, divergence: Divergence) -> Tensor:
    """Divergence of each token's distribution over the whole vocabulary.

    Args:
        student: [..., V], nats, log-probs of the student at the divergence's temperature.
        teacher: [..., V], nats, of the teacher.
        divergence: kind, and β of jsd.

    Returns:
        [...], nats, not reduced, >= 0. 0 where both are equal.
    """
    if divergence.kind == "reverse_kl":
        return _kl(student, teacher)
    if divergence.kind == "forward_kl":
        return _kl(teacher, student)
    beta = divergence.jsd_beta
    mixture = _mixture(student, teacher, beta)
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def divergence_gradient(student: Tensor, teacher: Tensor, divergence: Divergence) -> Tensor:
    """Gradient of `token_divergence` in the logits that `student` is the log-softmax of.

    With q, p and m = βp + (1 - β)q:
    reverse KL: q_j (log q_j - log p_j - KL(q || p)); forward KL: q_j - p_j;
    jsd: (1 - β) q_j (log q_j - log m_j - KL(q || m)).

    Args:
        student: [..., V], nats.
        teacher: [..., V], nats; gets no gradient.
        divergence: kind, and β of jsd.

    Returns:
        [..., V]; sums to 0 over the vocabulary.
    """
    probs = student.exp()
    if divergence.kind == "forward_kl":
        return probs - teacher.exp()
    if divergence.kind == "reverse_kl":
        return _reverse_gradient(probs, student - teacher)
    beta = divergence.jsd_beta
    logratio = student - _mixture(student, teacher, beta)
    return (1 - beta) * _reverse_gradient(probs, logratio)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q), [...], of log-probs [..., V]."""
    return (p.exp() * (p - q)).sum(-1)


def _mixture(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Log-probs of β times the teacher plus 1 - β times the student."""
    return torch.logaddexp(student + log1p(-beta), teacher + log(beta))


def _reverse_gradient(probs: Tensor, logratio: Tensor) -> Tensor:
    mean = (probs * logratio).sum(-1, keepdim=True)
    return probs * (logratio - mean)


def sampled_reverse_kl_loss(logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """Policy-gradient loss of the reverse KL at sampled tokens.

    The advantage of a token is log p - log q of the token alone, without those after it (Thinking
    Machines 2025, "On-Policy Distillation"). Averaged over tokens that the student samples, the
    gradient is that of KL(q || p) of `token_divergence`.

    Args:
        logp: [S], nats, log q of the sampled tokens under the student.
        teacher_logp: [S], nats, log p under the teacher.

    Returns:
        [S], not reduced. Its value is the log-ratio log q - log p, an unbiased estimate of the
        reverse KL.
    """
    advantage = (teacher_logp - logp).detach()
    return -advantage * (logp - logp.detach()).exp()
