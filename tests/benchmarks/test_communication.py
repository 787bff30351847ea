"""The bytes and times of `benchmarks.communication` by hand."""

import pytest

from benchmarks.communication import (
    Cluster,
    Size,
    Traffic,
    Work,
    all_gather,
    final_traffic,
    forward_traffic,
    size_of,
    step_of,
    training_traffic,
)

ONE = Cluster(8)
"""One machine of 8 GPUs."""

EIGHT = Cluster(64)
MODEL = Size(root=1000, layers=7000)


def test_an_all_gather_brings_what_the_others_have():
    assert all_gather(800.0, 8, ONE) == Traffic(700.0, 0.0)
    # of 8 machines 7 have what this one lacks, which 8 cards bring
    assert all_gather(6400.0, 64, EIGHT) == Traffic(6300.0, 6400 * 7 / 8 / 8)
    assert all_gather(800.0, 1, ONE) == Traffic()


def test_a_pass_of_full_gathers_twice_and_reduces_in_fp32():
    gathered, again, reduced = 2 * 8000, 2 * 7000, 4 * 8000
    found = training_traffic(MODEL, "full", ONE)
    assert found.nvlink == pytest.approx((gathered + again + reduced) * 7 / 8)
    kept = training_traffic(MODEL, "grad_op", ONE)
    assert kept.nvlink == pytest.approx((gathered + reduced) * 7 / 8)


def test_hybrid_sends_only_shards_of_gradients_between_machines():
    found = training_traffic(MODEL, "hybrid", EIGHT)
    assert found.network == pytest.approx(2 * (4 * 8000 / 8) * 7 / 8)
    assert found.nvlink == training_traffic(MODEL, "full", ONE).nvlink


def test_without_sharding_gradients_are_summed_once_a_step():
    assert training_traffic(MODEL, "none", ONE) == Traffic()
    assert final_traffic(MODEL, "none", ONE).nvlink == 2 * 4 * 8000 * 7 / 8
    step = step_of("sft", MODEL, "none", ONE, Work(micro_batches=4))
    assert step.traffic == final_traffic(MODEL, "none", ONE)


def test_a_step_of_sft_by_hand():
    """4 micro-batches of 100 tokens: 8 FLOPs a weight and token with recomputing."""
    cluster = Cluster(8, nvlink=1e6, flops=1e9)
    step = step_of("sft", MODEL, "full", cluster, Work(tokens=100, micro_batches=4))
    assert step.compute == pytest.approx(8 * 8000 * 400 / 1e9)
    assert step.seconds(cluster) == pytest.approx(4 * 62_000 * 7 / 8 / 1e6)
    assert step.bound(cluster) == "NVLink"
    # at the tokens that hide it, computing takes as long
    tokens = step.tokens_to_hide(cluster, Work(tokens=100, micro_batches=4))
    assert 8 * 8000 * 4 * tokens / 1e9 == pytest.approx(4 * 62_000 * 7 / 8 / 1e6)


def test_ppo_gathers_for_its_rollout_and_its_frozen_models():
    work = Work(micro_batches=1, responses=128, slots=64, new_tokens=10)
    cluster = Cluster(8, memory=1e6)
    step = step_of("ppo", MODEL, "full", cluster, work)
    once = forward_traffic(MODEL, "full", cluster)
    assert step.alone == once
    assert step.overlapped == training_traffic(MODEL, "full", cluster).times(2) + once.times(4)
    assert step.decode == pytest.approx(2 * 10 * 16_000 / 1e6)


def test_sizes_of_the_models():
    assert size_of("Llama-2-7B").all == 6_738_415_616
    assert size_of("Llama-3-70B").all == 70_553_706_496
    assert size_of("Llama-2-7B").root == 2 * 32_000 * 4096 + 4096
