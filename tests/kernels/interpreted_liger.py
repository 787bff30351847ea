"""liger-kernel's layers beside the model's own in Triton's interpreter, which runs on a CPU.

test_liger.py runs this file in a process of its own, since the interpreter has to be chosen before
Triton is imported. By hand: TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted_liger.py

The interpreter lacks what liger asks for in three places, which stand in for it here: the number of
a GPU's processors, numbers as kernels' arguments, and functions of CUDA's library. RMSNorm, SwiGLU,
GeGLU and RoPE then all run.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import triton
from liger_kernel.ops import geglu, rms_norm
from liger_kernel.ops.swiglu import LigerSiLUMulFunction
from transformers import AutoConfig
from triton import language as tl
from triton.runtime import interpreter

from rlhf_cli.context import RunContext
from rlhf_cli.errors import KernelError
from rlhf_cli.models import liger
from rlhf_cli.models.config import AdapterConfig, LoadConfig, ModelConfig
from rlhf_cli.models.load import LoadInputs, load_policy, load_reward_model
from rlhf_cli.models.parameters import frozen_copy
from rlhf_cli.models.tokenizer import load_tokenizer
from tests.helpers import random_rows
from tests.models.test_policy import SHAPE, gradient, make_policy, relative_error

CPU = torch.device("cpu")
LIGER = ["liger"]
QUICK = ("llama", "gemma2")
EXTRA = {"phi3": {"rope_scaling": None}, "gemma2": {"head_dim": 8}, "gemma3_text": {"head_dim": 8}}


@triton.jit
def rsqrt(x):
    return 1 / tl.sqrt(x)


@triton.jit
def tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@pytest.fixture(autouse=True)
def _like_a_gpu(monkeypatch):
    convert = interpreter._implicit_cvt

    def convert_float(argument):
        if not isinstance(argument, float):
            return convert(argument)
        held = interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32)
        return tl.tensor(held, tl.float32)

    processors = SimpleNamespace(multi_processor_count=2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: processors)
    monkeypatch.setattr(interpreter, "_implicit_cvt", convert_float)
    monkeypatch.setattr(rms_norm, "rsqrt", rsqrt)
    monkeypatch.setattr(geglu, "tanh", tanh)
    monkeypatch.setattr(liger, "triton_unavailable", lambda device: "")


def config_of(kind, **changes):
    return AutoConfig.for_model(kind, **{**SHAPE, **EXTRA.get(kind, {}), **changes})


def take(policy):
    liger.apply_liger(policy.model, LIGER, CPU)
    return policy


@pytest.mark.parametrize(
    "kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in liger.TYPES]
)
def test_logprobs_and_gradients_are_those_of_the_models_own_layers(kind):
    """To 1e-6 of the largest log-prob, 1e-5 of the largest gradient: fp32 rounding."""
    rows = random_rows([7, 1, 4])
    own = make_policy(config_of(kind), flat=True)
    other = take(make_policy(config_of(kind), flat=True))
    assert liger.liger_layers(own.model) == ""
    gated = "GeGLU" if kind.startswith("gemma") else "SwiGLU"
    assert liger.liger_layers(other.model) == f"RMSNorm, {gated}, RoPE"
    ours, expected = other(rows).logp, own(rows).logp
    assert relative_error(ours, expected) < 1e-6
    assert not torch.equal(ours, expected)
    found = gradient(other, ours)
    for name, value in gradient(own, expected).items():
        assert relative_error(found[name], value) < 1e-5, name


LLAMA = {"model_type": "llama", **{k: v for k, v in SHAPE.items() if not k.endswith("_id")}}

SMALL = {"num_hidden_layers": 1, "max_position_embeddings": 32}
"""So few positions that the probe leaves out its longest rows: the interpreter takes its time."""


def load(out, load_one=load_policy, kernels=LIGER, changes=None, adapter="none"):
    shape = {**LLAMA, **SMALL, **(changes or {})}
    model = ModelConfig(init="scratch", architecture=shape, tokenizer="tiny")
    cfg = LoadConfig(model=model, kernels=kernels, adapter=AdapterConfig(kind=adapter))
    ctx = RunContext(CPU, torch.float32, 0, out)
    return load_one(cfg, LoadInputs(load_tokenizer(model), ctx))


@pytest.mark.parametrize(
    ("load_one", "adapter"), [(load_policy, "dora"), (load_reward_model, "none")]
)
def test_a_loaded_model_gives_what_it_does_with_its_own_layers(tmp_path, capsys, load_one, adapter):
    """The probe has compared values and gradients; adapters' own parameters are compared here."""
    loaded = load(tmp_path, load_one, adapter=adapter)
    said = capsys.readouterr().err
    assert "layers: liger's RMSNorm, SwiGLU, RoPE\n" in said
    assert "equal the model's own in fp32 with attention per_row; rows kept" in said
    own = load(tmp_path, load_one, "none", adapter=adapter)
    assert "layers: the model's own (kernels=none)\n" in capsys.readouterr().err
    rows = random_rows([7, 12, 5])
    (ours, _), (expected, _) = loaded.probe_outputs(rows), own.probe_outputs(rows)
    assert relative_error(ours, expected) < 1e-6
    ours.sum().backward()
    expected.sum().backward()
    for one, other in zip(loaded.parameters(), own.parameters(), strict=True):
        if other.requires_grad:
            assert relative_error(one.grad, other.grad) < 1e-5


def test_a_frozen_copy_computes_with_its_own_weights():
    policy = take(make_policy(config_of("llama"), flat=True))
    rows = random_rows([4])
    copied = frozen_copy(policy, torch.float32)
    before = copied(rows).logp
    with torch.no_grad():
        for param in policy.parameters():
            param.mul_(1.5)
    assert liger.liger_layers(copied) == liger.liger_layers(policy)
    assert torch.equal(copied(rows).logp, before)
    assert not torch.equal(policy(rows).logp, before)


def test_wrong_layers_are_dropped_or_refused(tmp_path, capsys, monkeypatch):
    """liger takes SwiGLU for what any Llama has, whatever its activation."""
    relu = {"hidden_act": "relu"}
    with pytest.raises(KernelError, match="liger's RMSNorm, SwiGLU, RoPE are not exact here"):
        load(tmp_path, changes=relu)
    monkeypatch.setattr(liger, "triton_unavailable", lambda device: "needs CUDA")
    with pytest.raises(KernelError, match="needs CUDA"):
        load(tmp_path, changes=relu)
    monkeypatch.setattr(liger, "_unavailable_reason", lambda device: "")
    capsys.readouterr()
    policy = load(tmp_path, kernels="auto", changes=relu)
    said = capsys.readouterr().err
    assert "probe: liger's RMSNorm, SwiGLU, RoPE are not exact (log-probs differ by" in said
    assert "; the model's own instead\n" in said
    assert policy.flat
    assert liger.liger_layers(policy) == ""


def test_other_models_of_the_process_keep_their_layers(monkeypatch):
    take(make_policy(config_of("llama"), flat=True))
    own = make_policy(config_of("llama"), flat=True)
    monkeypatch.setattr(LigerSiLUMulFunction, "apply", None)
    monkeypatch.setattr(rms_norm.LigerRMSNormFunction, "apply", None)
    own(random_rows([5])).logp.sum().backward()
