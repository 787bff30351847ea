"""The sampling distribution against probabilities computed by sorting."""

import numpy as np
import pytest
import torch

from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.sampling import (
    BLOCK_SIZE,
    NON_FINITE,
    inverse_cdf,
    row_rng,
    sample_tokens,
    truncate,
)
from tests.fake_cuda import fake_cuda

DRAWS = 40_000


def expected_distribution(logits, sampling):
    """float64 probabilities, computed by sorting as the settings are documented."""
    probs = (logits.double() / sampling.temperature).softmax(-1)
    best, order = probs.sort(descending=True)
    if sampling.top_k:
        best[sampling.top_k :] = 0
    best = best / best.sum()
    before = best.cumsum(-1) - best
    best[before >= sampling.top_p] = 0
    best[best < sampling.min_p * best[0]] = 0
    return torch.zeros_like(best).scatter(0, order, best / best.sum())


SETTINGS = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.1},
    {"temperature": 1.5, "top_k": 12, "top_p": 0.8, "min_p": 0.2},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("vocabulary", [23, BLOCK_SIZE, 3 * BLOCK_SIZE + 7])
def test_samples_follow_the_distribution(settings, vocabulary):
    """Evenly spaced uniforms give each token as often as its probability, to one sample."""
    sampling = SamplingConfig(**settings)
    logits = 2 * torch.randn(vocabulary, generator=torch.Generator().manual_seed(0))
    law = expected_distribution(logits, sampling)
    uniform = (torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS
    parts = uniform.split(4000)
    drawn = [sample_tokens(logits.expand(len(u), -1).clone(), u, sampling) for u in parts]
    counts = torch.bincount(torch.cat(drawn), minlength=vocabulary)
    assert counts[law == 0].sum() == 0
    assert float((counts - DRAWS * law).abs().max()) < 1.1  # the rest is fp32 rounding of weights


def test_a_nucleus_larger_than_the_first_candidates():
    weights = torch.ones(1, 5000)
    weights[0, ::2] = 0.999
    kept = truncate(weights.clone(), SamplingConfig(top_p=0.9)) > 0
    assert kept[0, 1::2].all()
    assert kept.all()  # ties with the last one kept
    steep = torch.linspace(0, 1, 5000)[None]
    kept = truncate(steep.clone(), SamplingConfig(top_p=0.75)) > 0
    assert int(kept.sum()) == 2500  # three quarters of a triangle lie in its upper half


def test_inverse_cdf_at_both_ends():
    weights = torch.zeros(4, 600)
    weights[:, [3, 255, 256, 590]] = 1.0
    uniform = torch.tensor([0.0, 0.25, 0.5, float(np.nextafter(1, 0))], dtype=torch.float64)
    assert inverse_cdf(weights, uniform).tolist() == [3, 255, 256, 590]


def test_no_token_without_weight_is_ever_sampled():
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(500, 700, generator=generator) ** 40
    weights[torch.rand(500, 700, generator=generator) < 0.9] = 0
    weights[:, 699] = 1e-30
    uniform = torch.rand(500, generator=generator, dtype=torch.float64)
    tokens = inverse_cdf(weights, uniform)
    assert (weights.gather(1, tokens[:, None]) > 0).all()


def test_a_tiny_temperature_is_greedy():
    logits = torch.tensor([[0.0, 3.0, 2.9]])
    sampling = SamplingConfig(temperature=1e-6)
    uniform = torch.tensor([0.999], dtype=torch.float64)
    assert sample_tokens(logits, uniform, sampling).tolist() == [1]


def test_row_rng_differs_by_seed_prompt_and_sample():
    triples = [(a, b, c) for a in range(3) for b in range(3) for c in range(3)]
    assert len({row_rng(*triple).random() for triple in triples}) == 27
    assert row_rng(1, 2, 3).random() == row_rng(1, 2, 3).random()


@pytest.mark.parametrize("settings", [*SETTINGS, {"temperature": 0.0}], ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_non_finite_row_is_marked_and_affects_no_other(settings, value):
    logits = torch.randn(3, 2 * BLOCK_SIZE + 5)
    logits[1] = value
    drawn = sample_tokens(
        logits, torch.tensor([0.3, 0.5, 0.9]).double(), SamplingConfig(**settings)
    )
    assert drawn[1] == NON_FINITE
    assert (drawn[[0, 2]] >= 0).all()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_samples_are_the_same_with_deterministic_algorithms(settings, monkeypatch):
    logits, uniform = torch.randn(50, 2 * BLOCK_SIZE + 5), torch.rand(50).double()
    expected = sample_tokens(logits.clone(), uniform, SamplingConfig(**settings))
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    with fake_cuda(monkeypatch):
        there = sample_tokens(logits.to("cuda"), uniform.to("cuda"), SamplingConfig(**settings))
        assert there.tolist() == expected.tolist()
