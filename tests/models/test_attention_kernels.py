"""Rows in one call of a varlen kernel, and the check that it has to pass."""

import pytest
import torch
from torch.nn import functional as F

from rlhf_cli.models import attention, attention_kernels
from rlhf_cli.models.attention import RowLayout, per_row_attention

CPU = torch.device("cpu")


def kernel_of(*, lower_right):
    """`varlen_attn` as torch describes it, in plain operations."""

    def varlen_attn(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa
    ):
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        assert int(cu_seq_q.diff().max()) == max_q
        assert int(cu_seq_k.diff().max()) == max_k
        assert enable_gqa == (query.shape[1] != key.shape[1])
        left, right = window_size
        assert right == 0
        rows = []
        bounds = zip(cu_seq_q[:-1], cu_seq_q[1:], cu_seq_k[:-1], cu_seq_k[1:], strict=True)
        for first, last, begin, end in bounds:
            q, k, v = query[first:last], key[begin:end], value[begin:end]
            shift = len(k) - len(q) if lower_right else 0
            distance = torch.arange(len(q))[:, None] + shift - torch.arange(len(k))
            seen = (distance >= 0) & (distance <= (len(k) if left < 0 else left))
            q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
            row = F.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=enable_gqa)
            rows.append(row[0].transpose(0, 1))
        return torch.cat(rows)

    return varlen_attn


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel_of(lower_right=True))


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize(
    "layout",
    [RowLayout((5, 40, 1, 17)), RowLayout((9, 4, 6, 5, 20, 3, 3), (-1, 0, 0, -1, -1, 4, 4))],
)
@pytest.mark.usefixtures("kernel")
def test_one_call_gives_what_a_call_for_each_row_gives(layout, queries, window, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    tokens = sum(layout.lengths)
    drawn = [
        torch.randn(1, heads, tokens, 8, generator=generator).requires_grad_()
        for heads in (6, 6 // queries, 6 // queries)
    ]
    weights = torch.randn(1, tokens, 6, 8, generator=generator)

    def run():
        module = torch.nn.Identity()
        found, _ = per_row_attention(module, *drawn, None, sliding_window=window, row_layout=layout)
        return found, torch.autograd.grad((found * weights).sum(), drawn)

    plain, plain_gradients = run()
    monkeypatch.setattr(attention, "unavailable_reason", lambda *_: "")
    ours, gradients = run()
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    for got, expected in zip(gradients, plain_gradients, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("kernel")
def test_the_check_finds_a_kernel_that_aligns_rows_otherwise(monkeypatch):
    assert attention_kernels.max_error(CPU, torch.float32, 16) < 1e-5
    assert attention_kernels.max_error(CPU, torch.bfloat16, 16) < attention_kernels.MAX_ERROR
    wrong = kernel_of(lower_right=False)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", wrong)
    assert attention_kernels.max_error(CPU, torch.float32, 16) > attention_kernels.MAX_ERROR


@pytest.mark.parametrize(
    ("device", "dtype", "width", "told"),
    [
        ("cpu", torch.bfloat16, 64, "needs CUDA"),
        ("cuda", torch.float32, 64, "has no kernel for float32"),
        ("cuda", torch.bfloat16, 512, "has no kernel for heads of 512"),
        ("cuda", torch.bfloat16, 36, "has no kernel for heads of 36"),
    ],
)
def test_where_it_does_not_run_is_told(device, dtype, width, told):
    assert attention_kernels.unavailable_reason(torch.device(device), dtype, width) == told


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 128])
def test_a_gpu_has_no_obstacle(width):
    assert (
        attention_kernels.unavailable_reason(torch.device("cuda", 0), torch.bfloat16, width) == ""
    )
