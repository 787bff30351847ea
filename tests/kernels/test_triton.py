"""The Triton implementation: interpreted on a CPU, compiled for GPUs that are not here, run on one.

The interpreter checks the arithmetic and the compiler that it is Triton; neither says how fast it
is.
"""

import os

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.errors import KernelError
from rlhf_cli.kernels import eager
from rlhf_cli.kernels.lm_head import LMHead
from rlhf_cli.kernels.registry import LINEAR_LOGPROBS, triton_unavailable_reason
from tests.kernels.interpreted import run_interpreted
from tests.kernels.test_linear_logprobs import gradients, problem

triton = pytest.importorskip("triton")
CHIPS = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10}
"""Shared memory of a block, bytes, by compute capability: A100, L40S, H100 and H200."""

POINTERS = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int64: "*i64"}


def test_interpreted():
    run_interpreted("interpreted_triton.py")


def arguments(dtype, shared_memory, **head):
    """What both kernels are launched with at 8,192 x 4,096 x 151,936; no memory is taken."""
    from rlhf_cli.kernels.triton.args import TILES, KernelArgs

    make = lambda *shape, dtype=dtype: torch.empty(*shape, dtype=dtype, device="meta")  # noqa: E731
    weight, scalars = make(151936, 4096), make(8192, dtype=torch.float32)
    targets, bias = make(8192, dtype=torch.int64), make(151936)
    call = KernelArgs(make(8192, 4096), weight, bias, targets, LMHead(weight, **head), 0.7)
    tile = TILES[dtype].fitted(dtype.itemsize, shared_memory)
    of_forward = {"sums": scalars, "splits": 33, "tiles_per_split": 18}
    of_backward = {"out": make(8192, 16384), "out_row": 16384, "low": 0, "high": 16384}
    coefs = dict.fromkeys(("lse", "grad_target", "constant", "logp_coef"), scalars)
    flags = dict.fromkeys(("ENTROPY", "SUM_SQ", "TOP1"), True)
    shared = {**call.operands(), "num_warps": tile.warps, "num_stages": tile.stages, "GROUP": 8}
    return {**shared, **of_forward, **of_backward, **coefs, **flags, "factor": 1.0}


def compiled(kernel, given, capability):
    """The kernel as the launcher would compile it for these arguments."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {p.name: given[p.name] for p in kernel.params if p.is_constexpr}
    constants |= {"hidden_step": 1, "weight_step": 1}
    signature, attributes = {}, {}
    for index, parameter in enumerate(kernel.params):
        value = given[parameter.name]
        if parameter.name in constants:
            signature[parameter.name] = "constexpr"
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        aligned = isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)
        if aligned and parameter.name not in constants and not parameter.do_not_specialize:
            attributes[index,] = [["tt.divisibility", 16]]
    return triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={name: given[name] for name in ("num_warps", "num_stages")},
    )


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="nothing is compiled under it")
@pytest.mark.parametrize("capability", CHIPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["forward", "backward"])
def test_compiles_within_shared_memory(name, dtype, capability, tmp_path, monkeypatch):
    from rlhf_cli.kernels.triton import backward, forward

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = forward.forward_kernel if name == "forward" else backward.gradient_kernel
    found = compiled(kernel, arguments(dtype, CHIPS[capability], softcap=30.0), capability)
    assert found.asm["cubin"]
    assert 0 < found.metadata.shared <= CHIPS[capability]
    copies = "cp.async" in found.asm["ptx"]  # loads run ahead of the products
    tensor_cores = {80: "mma.sync", 89: "mma.sync", 90: "wgmma.mma_async"}[capability]
    assert copies
    assert (tensor_cores in found.asm["ptx"]) == (dtype == torch.bfloat16)


def test_the_last_programs_end_together():
    from rlhf_cli.kernels.triton.forward import tiles_per_split

    # 64 tiles of tokens, 594 of the vocabulary, 132 processors: 288 tiles each are the least
    assert tiles_per_split(64, 594, 132) == 18  # 33 splits: 16 programs of 18 tiles a processor
    assert tiles_per_split(1, 594, 132) == 5  # few tokens: 119 of 132 processors have work
    assert tiles_per_split(1, 1, 132) == 1
    assert tiles_per_split(0, 1, 132) == 1


def test_a_stage_less_where_shared_memory_is_small():
    from rlhf_cli.kernels.triton.args import TILES

    tile = TILES[torch.bfloat16]
    assert [tile.fitted(2, shared).stages for shared in CHIPS.values()] == [3, 2, 4]


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"capability": (7, 5)}, "needs compute capability 8.0, this GPU has 7.5"),
        ({"installed": False}, "not installed (pip install triton)"),
        ({"hip": "6.4"}, "needs an NVIDIA GPU"),
        ({}, "cannot start (Failed to find C compiler)"),
    ],
    ids=str,
)
def test_the_reason_why_triton_cannot_run(state, reason, monkeypatch):
    class Driver:
        def get_current_target(self):
            raise RuntimeError("Failed to find C compiler")

    where = "rlhf_cli.kernels.registry"
    monkeypatch.setattr(torch.version, "hip", state.get("hip"))
    monkeypatch.setattr(f"{where}.find_spec", lambda name: state.get("installed", True) or None)
    capability = state.get("capability", (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr("triton.runtime.driver._active", Driver())
    assert triton_unavailable_reason(torch.device("cuda")) == reason


GPU = pytest.mark.gpu
SHAPE = (300, 136, 5003)


def on_gpu(dtype, **head):
    hidden, layer, targets = problem(*SHAPE, dtype, **head)
    moved = (t.detach().cuda().requires_grad_() for t in (layer.weight, layer.bias))
    upstream = torch.randn(3, len(targets), generator=torch.Generator().manual_seed(1)).cuda()
    return (
        hidden.detach().cuda().requires_grad_(),
        LMHead(*moved, layer.scale, layer.softcap),
        targets.cuda(),
        upstream,
    )


def run_of(name):
    return next(i.run for i in LINEAR_LOGPROBS if i.name == name)


@GPU
@pytest.mark.parametrize("head", [{}, {"scale": 0.5, "softcap": 20.0}], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_error_on_a_gpu_is_that_of_eager(dtype, head):
    """Against float64; 1e-5 of the mean size leaves room for another order of fp32 sums."""
    hidden, layer, targets, upstream = on_gpu(dtype, **head)
    exactly = LMHead(layer.weight.double(), layer.bias.double(), layer.scale, layer.softcap)

    def results(run, hidden, layer, upstream):
        out, found = gradients(run, hidden, layer, targets, upstream, 0.8)
        return [t.detach().double() for t in (out.logp, out.entropy, out.lse, out.sum_sq, *found)]

    exact = results(eager.linear_logprobs, hidden.double(), exactly, upstream.double())
    plain = results(eager.linear_logprobs, hidden, layer, upstream)
    got = results(run_of("triton"), hidden, layer, upstream)
    for g, p, e in zip(got, plain, exact, strict=True):
        assert (g - e).abs().mean() <= 1.1 * (p - e).abs().mean() + 1e-5 * e.abs().mean()


@GPU
def test_a_second_run_on_a_gpu_has_the_same_bits():
    hidden, layer, targets, upstream = on_gpu(torch.bfloat16)
    first, second = (
        gradients(run_of("triton"), hidden, layer, targets, upstream, 1.0) for _ in range(2)
    )
    assert torch.equal(first[0].logp, second[0].logp)
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


@GPU
def test_memory_on_a_gpu_is_not_that_of_logits():
    hidden = torch.randn(4096, 512, device="cuda", dtype=torch.bfloat16)
    head = LMHead(torch.randn(65536, 512, device="cuda", dtype=torch.bfloat16))
    targets = torch.zeros(4096, dtype=torch.int64, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run_of("triton")(hidden, head, targets, temperature=1.0, want=frozenset(["entropy"]))
    logits = 4096 * 65536 * 2
    assert torch.cuda.max_memory_allocated() - before < logits / 8


@GPU
def test_no_tokens_and_float64_on_a_gpu():
    hidden, layer, targets, _ = on_gpu(torch.float32)
    none = run_of("triton")(hidden[:0], layer, targets[:0], temperature=1.0, want=frozenset())
    none.logp.sum().backward()
    assert_close(layer.weight.grad, torch.zeros_like(layer.weight))
    with pytest.raises(KernelError, match="float64"):
        run_of("triton")(
            hidden.double(),
            LMHead(layer.weight.double()),
            targets,
            temperature=1.0,
            want=frozenset(),
        )
