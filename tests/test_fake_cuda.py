"""The stand-in for a CUDA device refuses what CUDA refuses, and counts what CUDA waits for."""

import threading

import pytest
import torch
from torch import nn

from tests.fake_cuda import CUDA, MixedDevices, fake_cuda


@pytest.fixture
def cuda(monkeypatch):
    with fake_cuda(monkeypatch) as fake:
        yield fake


def there(*values):
    return torch.tensor(values, dtype=torch.float32).to(CUDA, non_blocking=True)


def test_where_a_tensor_lies_goes_with_its_memory(cuda):
    moved = there(1, 2, 3)
    for one in (moved, moved[1:], moved.detach(), moved.data, moved * 2, nn.Parameter(moved)):
        assert one.device == CUDA
        assert one.is_cuda
    assert torch.ones(2).device.type == "cpu"
    assert torch.ones(2, device="cuda").is_cuda
    assert torch.empty_like(moved).is_cuda
    assert moved.new_zeros(2).is_cuda
    assert not moved.cpu().is_cuda


def test_a_module_moves_with_its_gradients(cuda):
    layer = nn.Linear(3, 2).to("cuda")
    layer(there(1, 2, 3)).sum().backward()
    assert layer.weight.grad.is_cuda


def test_gradients_come_back_from_the_device(cuda):
    here = torch.ones(3, requires_grad=True)
    (here.to("cuda") * there(1, 2, 3)).sum().backward()
    assert here.grad.tolist() == [1, 2, 3]
    assert not here.grad.is_cuda


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.cat([x, torch.ones(1)]),
        lambda x: x.index_select(0, torch.tensor([0])),
        lambda x: torch.ones(3)[x > 1],
        lambda x: torch.ones(()).add_(x[0]),
        lambda x: x.index_put_((torch.tensor([0, 1]),), torch.ones(2)),
        lambda x: nn.functional.linear(x, torch.ones(2, 3)),
        lambda x: x.normal_(generator=torch.Generator()),
    ],
)
def test_operations_on_two_devices_are_refused(cuda, mix):
    with pytest.raises(MixedDevices):
        mix(there(1, 2, 3))


def test_what_cuda_allows_is_allowed(cuda):
    x = there(1, 2, 3)
    assert (x + torch.tensor(1.0)).is_cuda
    assert x[torch.tensor([0, 2])].is_cuda
    x[x > 2] = 0
    x[:1] = 5
    assert x.tolist() == [5, 2, 0]


def test_numpy_needs_the_cpu(cuda):
    with pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
        there(1).numpy()


@pytest.mark.parametrize(
    ("act", "waits"),
    [
        (lambda x: x.sum(), 0),
        (lambda x: float(x[0]), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: bool((x > 0).all()), 1),
        (lambda x: x[x > 1], 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x.masked_fill_(x > 1, 0), 0),
        (lambda x: x.cpu(), 1),
        (lambda x: torch.tensor([1.0], device="cuda"), 1),
        (lambda x: torch.tensor([1.0]).to("cuda", non_blocking=True), 0),
        (lambda x: x.copy_(torch.ones(3)), 1),
        (lambda x: torch.repeat_interleave(x.long()), 1),
        (lambda x: torch.repeat_interleave(x.long(), output_size=6), 0),
    ],
)
def test_waits_are_counted(cuda, act, waits):
    x = there(1, 2, 3)
    act(x)
    assert cuda.waits.total() == waits


def test_threads_compute_under_it_too(cuda):
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.ones(1, device="cuda").is_cuda))
    thread.start()
    thread.join()
    assert found == [True]
