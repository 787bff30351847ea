"""liger-kernel's layers: interpreted on a CPU, run on a GPU, refused where they cannot run."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from rlhf_cli.context import RunContext
from rlhf_cli.errors import ConfigError, KernelError
from rlhf_cli.kernels.registry import choose
from rlhf_cli.models import liger
from rlhf_cli.models.config import LoadConfig, ModelConfig
from rlhf_cli.models.load import LoadInputs, load_policy
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.preflight.models import load_problems
from tests.helpers import random_rows, tiny_llama
from tests.kernels.interpreted import run_interpreted
from tests.models.test_policy import ARCHITECTURES, gradient, make_policy, relative_error

pytest.importorskip("triton")
pytest.importorskip("liger_kernel")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_interpreted(which):
    run_interpreted("interpreted_liger.py", which)


@pytest.mark.parametrize(
    ("setting", "device_obstacle", "reason"),
    [
        ("auto", "needs CUDA", "liger: needs CUDA"),
        ("auto", "", "liger: has no layers of gpt2"),
        ("none", "", "kernels=none"),
        (["chunked", "eager"], "", "kernels=[chunked, eager]"),
    ],
)
def test_a_models_own_layers_are_kept_and_why(
    setting, device_obstacle, reason, monkeypatch, capsys
):
    monkeypatch.setattr(liger, "triton_unavailable", lambda device: device_obstacle)
    model = make_policy(ARCHITECTURES["gpt2"], flat=True).model
    liger.apply_liger(model, setting, CUDA)
    assert capsys.readouterr().err == f"layers: the model's own ({reason})\n"
    assert liger.liger_layers(model) == ""


def test_liger_by_name_is_refused_where_it_cannot_run(monkeypatch):
    with pytest.raises(KernelError, match=r"got liger, which cannot run here \(needs CUDA\)"):
        liger.apply_liger(tiny_llama(), ["liger"], CPU)
    with pytest.raises(ConfigError, match=r"needs CUDA.*Try kernels=auto"):
        liger.require_liger(["liger", "triton"], CPU)
    liger.require_liger(["triton"], CPU)
    liger.require_liger("auto", CPU)
    monkeypatch.setattr(liger, "triton_unavailable", lambda device: "")
    with pytest.raises(KernelError, match="has no layers of gpt2"):
        liger.apply_liger(make_policy(ARCHITECTURES["gpt2"], flat=True).model, ["liger"], CUDA)
    monkeypatch.setattr(liger, "find_spec", lambda name: None)
    with pytest.raises(KernelError, match="not installed"):
        liger.apply_liger(tiny_llama(), ["liger"], CUDA)


def test_liger_that_is_not_installed_is_refused_before_anything_is_loaded(monkeypatch):
    cfg = LoadConfig(model=ModelConfig(path="tiny"), kernels=["liger"])
    assert load_problems(cfg) == []
    monkeypatch.setattr(
        "rlhf_cli.preflight.models.find_spec",
        lambda name: None if name == "liger_kernel" else find_spec(name),
    )
    (line,) = load_problems(cfg)
    assert line.startswith("kernels: got liger, but liger-kernel is not installed. Try pip install")


def test_a_list_without_log_probs_leaves_them_as_auto_does():
    assert choose(["liger"], CPU) == choose("auto", CPU)
    assert choose(["liger", "eager"], CPU)[0].name == "eager"


@pytest.mark.gpu
def test_liger_on_a_gpu(tmp_path: Path):
    """fp32: the probe at load has compared it too; 1e-4 leaves room for another order of sums."""
    cfg = LoadConfig(model=ModelConfig(path="tiny"), kernels=["liger"])
    ctx, tokenizer = RunContext(CUDA, torch.float32, 0, tmp_path), load_tokenizer(cfg.model)
    policy = load_policy(cfg, LoadInputs(tokenizer, ctx))
    assert liger.liger_layers(policy) == "RMSNorm, SwiGLU, RoPE"
    rows = random_rows([7, 120, 33]).to(CUDA)
    ours = policy(rows).logp
    found = gradient(policy, ours)
    with liger.without_liger(policy):
        expected = policy(rows).logp
        own = gradient(policy, expected)
    assert relative_error(ours, expected) < 1e-5
    for name, value in own.items():
        assert relative_error(found[name], value) < 1e-4, name
