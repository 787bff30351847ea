"""docs/support.md: every yes is a run, every no a refusal, and the page says what stands here."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_cli import cli
from tests import support
from tests.helpers import last_of_each

ONE_STEP = (
    "data=tiny", "data.eval=none", "data.split=[:8]", "batch_size=4", "max_steps=1",
    "train.precision=fp32", "lr=1e-2",
)  # fmt: skip


def train(out, stage, weights, *words):
    own = [*support.STAGES[stage], *support.WEIGHTS[weights], f"output_dir={out}"]
    assert cli.main(last_of_each(stage, "model=tiny", *ONE_STEP, *own, *words)) == 0


def trained(out):
    """The parameters that a run trained, by the names that a saved model has for them."""
    weights = load_file(out / "checkpoints" / "step-000001" / "weights.safetensors")
    found = {}
    for name, tensor in weights.items():
        if not name.startswith("value_model."):  # a value model ends with its run
            name = name.removeprefix("model.").replace(".modules_to_save.default", "")
            name = name.replace("_vector.default.weight", "_vector").replace(".default", "")
            found[name] = tensor
    return found


def saved(out):
    """The tensors of a result."""
    (file,) = (out / "model").glob("*.safetensors")
    return load_file(file)


def said(folder):
    """What transformers and PEFT make of a result, without this package: log-probs or scores."""
    kind = json.loads((folder.parent / "artifact.json").read_text())["kind"]
    scores = kind == "reward_model"
    auto = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    options = {"dtype": torch.float32} | ({"num_labels": 1} if scores else {})
    settings = folder / "adapter_config.json"
    if settings.is_file():
        base = json.loads(settings.read_text())["base_model_name_or_path"]
        with warnings.catch_warnings():  # GPT-2's layers, unless packed
            warnings.filterwarnings("ignore", "fan_in_fan_out", UserWarning)
            model = PeftModel.from_pretrained(auto.from_pretrained(base, **options), folder)
    else:
        model = auto.from_pretrained(folder, **options)
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 20)[None]).logits


def some(names, quick):
    """All of them as parameters; those that are not quick in `make test-all` alone."""
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("weights", some(support.WEIGHTS, ("LoRA", "QLoRA nf4")))
@pytest.mark.parametrize("stage", support.STAGES)
def test_trains(tmp_path, stage, weights):
    """The result holds what was trained, bit for bit, and loads without this package."""
    out = tmp_path / "run"
    train(out, stage, weights)
    expected, found = trained(out), saved(out)
    assert expected.keys() <= found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert said(out / "model").isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("weights", support.ON_TWO)
@pytest.mark.parametrize("stage", support.STAGES)
def test_trains_on_two_processes(tmp_path, stage, weights):
    train(tmp_path / "run", stage, weights, "launch.processes=2")
    assert said(tmp_path / "run" / "model").isfinite().all()


@pytest.mark.parametrize("column", some(support.OF_ARCHITECTURES, ("sft, LoRA",)))
@pytest.mark.parametrize("name", support.ARCHITECTURES)
def test_trains_architecture(tmp_path, name, column):
    stage, weights = support.OF_ARCHITECTURES[column]
    train(tmp_path / "run", stage, weights, "model.path=", *support.architecture(name))
    assert said(tmp_path / "run" / "model").isfinite().all()


@pytest.mark.parametrize("what", support.REFUSED)
def test_refuses(tmp_path, monkeypatch, capsys, what):
    if what.endswith("on a CPU") and torch.cuda.is_available():
        pytest.skip("a GPU takes it")
    monkeypatch.chdir(tmp_path)
    (stage, *words), line = support.REFUSED[what]
    assert cli.main([stage, "model=tiny", "data=tiny", *words]) == 2
    error = capsys.readouterr().err
    assert f"error: {line}" in error
    assert "Try " in error


def test_the_page_is_what_stands_here():
    page = Path(__file__).parents[1] / "docs" / "support.md"
    assert page.read_text(encoding="utf-8") == support.page(), "see python -m tests.support"
