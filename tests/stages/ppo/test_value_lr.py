"""A learning rate of the value model's own."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from rlhf_cli.train.config import TrainConfig
from rlhf_cli.train.optim import MasterAdamW


def test_a_parameter_steps_by_its_own_rate():
    """The first step of AdamW without decay changes each weight by its learning rate."""
    module = nn.ParameterDict({name: nn.Parameter(torch.ones(2, 3)) for name in ("a", "value")})
    optimizer = MasterAdamW(module, TrainConfig(), torch.float32, lr_factors={"value": 20.0})
    (module["a"].sum() + module["value"].sum()).backward()
    optimizer.step(1e-3)
    moved = {name: 1 - float(param.detach().mean()) for name, param in module.items()}
    assert moved == pytest.approx({"a": 1e-3, "value": 2e-2}, rel=1e-3)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), "value_model."),
        (("adapter=lora", "adapter.rank=2", "value=adapter"), ".for_value."),
    ],
)
def test_only_the_value_model_has_the_rate(words, part, ppo, files):
    """The policy hardly moves with lr 1e-9, and the value model does with 1e-2."""
    words = (*words, "lr=1e-9", "value_lr=1e-2", "train.save_steps=1", "train.keep_checkpoints=9")
    ppo(*words, "max_steps=2", "train.schedule=constant")
    first, last = (
        load_file(files / "run" / "checkpoints" / f"step-00000{n}" / "weights.safetensors")
        for n in (1, 2)
    )
    far = {name for name in first if float((first[name] - last[name]).abs().max()) > 1e-4}
    assert far == {name for name in first if part in name or name.startswith("value_model.")}
    assert far
