"""Compiled layers beside plain ones."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters

from rlhf_cli.data.config import DataConfig
from rlhf_cli.errors import ConfigError, ModelError
from rlhf_cli.kernels.registry import choose
from rlhf_cli.launch.config import LaunchConfig
from rlhf_cli.models import torch_compile
from rlhf_cli.models.config import TrainedModelConfig
from rlhf_cli.models.parameters import frozen_copy
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.torch_compile import compile_layers, require_compiler, uncompiled
from rlhf_cli.rollout.continuous_batching import generation_mode
from rlhf_cli.stages.sft.config import SFTConfig
from rlhf_cli.train.config import TrainConfig
from tests.helpers import random_rows, tiny_llama
from tests.models.test_policy import gradient, relative_error

CPU = torch.device("cpu")
pytestmark = [  # of the compiler itself
    pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]


def tiny_policy():
    model = tiny_llama(num_hidden_layers=1).train()
    return Policy(model, choose("auto", CPU)[0], flat=True)


def test_a_cpu_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setattr(torch_compile.shutil, "which", lambda name: None)
    monkeypatch.setenv("CXX", "nowhere++")
    with pytest.raises(ConfigError, match=r"train\.compile: .*no nowhere\+\+.* Try train\.compile"):
        require_compiler(True, CPU)
    require_compiler(False, CPU)
    require_compiler(True, torch.device("cuda"))


def test_compiling_and_recomputing_are_refused_together():
    (line,) = TrainConfig(compile=True, gradient_checkpointing=True).problems()
    assert line.startswith("train.compile: got true beside train.gradient_checkpointing=true")


def test_compiling_sharded_layers_is_refused():
    cfg = SFTConfig(
        model=TrainedModelConfig(path="tiny"),
        data=DataConfig(path="tiny"),
        train=TrainConfig(compile=True),
        launch=LaunchConfig(shard="full"),
    )
    (line,) = cfg.problems()
    assert line.startswith("train.compile: got true with launch.shard=full, and compiled layers")


def test_a_compiler_that_fails_is_told(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("g++: fatal error\nand much more")

    def compile_lazily(module, **_):
        module._compiled_call_impl = fail

    monkeypatch.setattr(torch.nn.Module, "compile", compile_lazily)
    with pytest.raises(ModelError, match=r"^train\.compile: .*g\+\+: fatal error\)\. Try"):
        compile_layers(tiny_policy())


@pytest.mark.slow  # half a minute to a minute in the compiler
def test_any_length_gives_the_plain_log_probs_and_gradients_without_compiling_anew(capsys):
    """To 1e-6 of the largest log-prob, 1e-5 of the largest gradient: fp32 rounding."""
    policy = tiny_policy()
    compile_layers(policy)
    assert "compile: 1 layers in" in capsys.readouterr().err
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    for number in range(20):
        rows = random_rows([3 + number, 5, 2 * number + 1], seed=number)
        ours = policy(rows).logp
        found = gradient(policy, ours)
        with uncompiled(policy):
            expected = policy(rows).logp
            own = gradient(policy, expected)
        assert relative_error(ours, expected) < 1e-6
        for name, value in own.items():
            assert relative_error(found[name], value) < 1e-5, name
    with generation_mode(policy.model, "sdpa"):
        policy.model(rows.tokens[None], use_cache=False)
    assert counters["stats"]["unique_graphs"] == graphs
    assert policy.model.state_dict().keys() == tiny_policy().model.state_dict().keys()
    frozen = frozen_copy(policy, torch.float32)
    assert all(module._compiled_call_impl is None for module in frozen.modules())
    assert relative_error(copy.deepcopy(frozen)(rows).logp, expected) < 1e-6
