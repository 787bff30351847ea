"""Each cell of docs/support.md: a run or a refusal, compared with tests/support.json."""

import json
import re
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


def train(out, capsys, stage, weights, *words):
    """Train one step; "yes", or "no" with the key that the refusal names."""
    own = [*support.STAGES[stage], *support.WEIGHTS[weights], f"output_dir={out}"]
    code = cli.main(last_of_each(stage, "model=tiny", *ONE_STEP, *own, *words))
    error = capsys.readouterr().err
    assert code in (0, 2), error
    return "yes" if code == 0 else f"no: `{named_key(error)}`"


def named_key(error):
    """The key that the first line of an error names."""
    return re.search(r"^error: ([\w.]+):", error, re.MULTILINE)[1]


def trained(out):
    """The parameters that a run trained, under their names in a saved model."""
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


def outputs(folder):
    """Logits or scores of a result, from transformers and PEFT without this package."""
    kind = json.loads((folder.parent / "artifact.json").read_text())["kind"]
    scores = kind == "reward_model"
    auto = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    options = {"dtype": torch.float32} | ({"num_labels": 1} if scores else {})
    settings = folder / "adapter_config.json"
    if settings.is_file():
        base = json.loads(settings.read_text())["base_model_name_or_path"]
        with warnings.catch_warnings():  # GPT-2's layers, unless quantized
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
def test_trains(tmp_path, capsys, stage, weights):
    """The result holds what was trained, bit for bit, and loads without this package."""
    out = tmp_path / "run"
    found = train(out, capsys, stage, weights)
    if found == "yes":
        expected, result = trained(out), saved(out)
        assert expected.keys() <= result.keys()
        assert all(torch.equal(result[name], tensor) for name, tensor in expected.items())
        assert outputs(out / "model").isfinite().all()
    support.check("stages", f"{stage} / {weights}", found)


@pytest.mark.slow
@pytest.mark.parametrize("weights", support.ON_TWO)
@pytest.mark.parametrize("stage", support.STAGES)
def test_trains_on_two_processes(tmp_path, capsys, stage, weights):
    found = train(tmp_path / "run", capsys, stage, weights, "launch.processes=2")
    if found == "yes":
        assert outputs(tmp_path / "run" / "model").isfinite().all()
    support.check("two processes", f"{stage} / {weights}", found)


@pytest.mark.parametrize("column", some(support.OF_ARCHITECTURES, ("sft, LoRA",)))
@pytest.mark.parametrize("name", support.ARCHITECTURES)
def test_trains_architecture(tmp_path, capsys, name, column):
    stage, weights = support.OF_ARCHITECTURES[column]
    words = ["model.path=", *support.architecture(name)]
    found = train(tmp_path / "run", capsys, stage, weights, *words)
    if found == "yes":
        assert outputs(tmp_path / "run" / "model").isfinite().all()
    support.check("architectures", f"{name} / {column}", found)


@pytest.mark.parametrize("what", support.REFUSED)
def test_refuses(tmp_path, monkeypatch, capsys, what):
    if what.endswith("on a CPU") and torch.cuda.is_available():
        pytest.skip("a GPU takes it")
    monkeypatch.chdir(tmp_path)
    (stage, *words), key = support.REFUSED[what]
    assert cli.main([stage, "model=tiny", "data=tiny", *words]) == 2
    error = capsys.readouterr().err
    assert named_key(error) == key
    assert "Try " in error
    support.check("refused", what, key)


def test_the_page_shows_the_stored_results():
    page = Path(__file__).parents[1] / "docs" / "support.md"
    assert page.read_text(encoding="utf-8") == support.page(), "see tests/support.py"


def test_every_cell_has_a_stored_result():
    stored = support.stored_results()
    assert stored.keys() == {"stages", "two processes", "architectures", "refused"}
    assert {*stored["stages"]} == {f"{s} / {w}" for s in support.STAGES for w in support.WEIGHTS}
    assert {*stored["two processes"]} == {
        f"{s} / {w}" for s in support.STAGES for w in support.ON_TWO
    }
    assert {*stored["architectures"]} == {
        f"{name} / {column}"
        for name in support.ARCHITECTURES
        for column in support.OF_ARCHITECTURES
    }
    assert {*stored["refused"]} == {*support.REFUSED}
