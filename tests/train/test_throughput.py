import torch

from rlhf_cli.kernels.registry import choose
from rlhf_cli.models.attach_adapters import attach_adapters
from rlhf_cli.models.config import AdapterConfig
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.resolve import ModelSource
from rlhf_cli.train.throughput import count_flops, measure_peak
from tests.helpers import random_rows, tiny_llama

CPU = torch.device("cpu")


def policy_of(model, adapters=None):
    return Policy(model, choose("auto", CPU)[0], flat=True, adapters=adapters)


def test_work_is_six_flop_a_trained_weight_and_token():
    """Counted by hand for the tests' Llama: d 32, 2 layers, 4 heads of 8, 2 of keys, inner 64."""
    work = count_flops(policy_of(tiny_llama()))
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64
    assert work.token == 6 * 2 * layer
    assert work.scored == 6 * 32 * 97
    assert work.pair == 12 * 4 * 8 * 2
    rows = random_rows([3, 2])
    scored = len(rows.scored)
    expected = work.token * 5 + work.pair * (6 + 3) + work.scored * scored
    assert work.of_rows(rows.row_lengths, scored) == expected


def test_frozen_weights_need_no_gradient_of_their_own():
    full = count_flops(policy_of(tiny_llama()))
    adapters = attach_adapters(
        tiny_llama(), ModelSource("x"), AdapterConfig(kind="lora", rank=2), 0
    )
    lora = count_flops(policy_of(adapters.model, adapters))
    trained = sum(p.numel() for p in adapters.model.parameters() if p.requires_grad)
    assert lora.token == full.token * 4 // 6 + 6 * trained
    assert lora.scored == full.scored * 4 // 6


def test_the_peak_is_measured():
    assert measure_peak(CPU, torch.float32) > 1e9
