"""`model.freeze`: layers that stay as they are in full training."""

import pytest
import torch
from safetensors.torch import load_file

from rlhf_cli import cli
from rlhf_cli.errors import ModelError
from rlhf_cli.models.parameters import freeze_modules
from tests.helpers import last_of_each, tiny_llama
from tests.stages.conftest import FAST


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["embed_tokens"], {"model.embed_tokens"}),
        (["layers.0", "norm"], {"model.layers.0", "model.norm"}),
        (["model.layers"], {"model.layers.0", "model.layers.1"}),
    ],
)
def test_the_layers_of_these_names_are_frozen(names, expected, capsys):
    model = tiny_llama()
    freeze_modules(model, names, torch.bfloat16)
    frozen = {name for name, param in model.named_parameters() if not param.requires_grad}
    assert frozen == {
        name
        for name, _ in model.named_parameters()
        if any(name.startswith(f"{layer}.") for layer in expected)
    }
    assert {p.dtype for n, p in model.named_parameters() if n in frozen} == {torch.bfloat16}
    count = sum(param.numel() for name, param in model.named_parameters() if name in frozen)
    assert f"frozen: {count:,} of these" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["layer.0"], r"model.freeze: got layer.0; no layer has that name"),
        (["embed_token"], r"Try model.freeze=\[embed_tokens\]"),
        (["model", "lm_head"], "model.freeze: model, lm_head hold all parameters"),
    ],
)
def test_names_of_nothing_or_of_everything_are_refused(names, line):
    with pytest.raises(ModelError, match=line):
        freeze_modules(tiny_llama(), names, torch.float32)


def test_a_run_leaves_frozen_layers_as_they_were(sft_run, tmp_path):
    words = ["sft", f"model={sft_run}", "data=tiny", "max_steps=2", "lr=1e-2"]
    frozen = ["model.freeze=[embed_tokens,layers.1]", f"output_dir={tmp_path}"]
    assert cli.main(last_of_each(*words, *frozen, *FAST)) == 0
    before, after = (load_file(out / "model/model.safetensors") for out in (sft_run, tmp_path))
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert kept == {n for n in before if "embed_tokens" in n or "layers.1." in n}


def test_freezing_beside_an_adapter_is_refused(capsys):
    words = ["sft", "model=tiny", "data=tiny", "adapter=lora", "model.freeze=[norm]"]
    assert cli.main(words) == 2
    assert "error: model.freeze: got norm beside an adapter" in capsys.readouterr().err
