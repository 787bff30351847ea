"""`rlhf schema`: what it says of a recipe, beside what the check says."""

import json
import subprocess
import sys
from functools import cache

import pytest

from rlhf_cli import cli, resources
from rlhf_cli.commands.schema import format_schema
from rlhf_cli.commands.shipped import MODELINE, SCHEMA
from rlhf_cli.config import recipe
from rlhf_cli.config.json_schema import recipe_schema
from rlhf_cli.config.schema import aliases, field_types, options
from rlhf_cli.config.yaml_files import read_document
from rlhf_cli.registry import COMMANDS

jsonschema = pytest.importorskip("jsonschema")

SHIPPED = resources.shipped_folder("configs") / SCHEMA


@pytest.fixture(autouse=True)
def _shipped_presets_only(monkeypatch):
    monkeypatch.delenv("RLHF_CONFIGS", raising=False)


@cache
def validator(*names: str):
    schema = recipe_schema([COMMANDS[name] for name in names or COMMANDS])
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture(scope="module")
def of_all():
    return validator()


@pytest.fixture(scope="module")
def of_sft():
    return validator("sft")


def test_the_shipped_schema_is_the_generated_one():
    """If not: `rlhf schema > configs/schema/recipe.json`."""
    assert SHIPPED.read_text(encoding="utf-8") == format_schema(recipe_schema(COMMANDS.values()))


@pytest.mark.parametrize("name", resources.recipe_names())
def test_a_shipped_recipe_fits_and_names_its_schema(name, of_all):
    path = recipe.find(name)
    values = read_document(path, name).values
    assert [error.message for error in of_all.iter_errors(values)] == []
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    assert first.startswith(MODELINE)
    assert (path.parent / first.removeprefix(MODELINE)).resolve() == SHIPPED.resolve()
    stage = values.get("stage")
    if stage:
        assert validator(stage).is_valid(values)


@pytest.mark.parametrize(
    "values",
    [
        {"stage": "sft", "base": "tiny/sft", "vars": {"a": 1}, "lr": "${vars.a}"},
        {"sweep": {"lr": [1e-4, 3e-4], "metric": "eval/loss", "mode": "min"}},
        {"model": "tiny", "data": "rows.jsonl", "adapter": "lora", "quant": "none"},
        {"model": {"path": "x"}, "train": {"lr": 1e-4, "schedule": "wsd"}, "epochs": 3},
        {"train.lr": 1e-4, "data.columns.prompt": "q", "adapter.targets": ["q_proj"]},
        {"train": {"lr": "auto"}, "data": {"path": [{"path": "a", "weight": 2}, "b"]}},
        {"adapter": "mine"},
    ],
)
def test_right_values_are_accepted(values, of_sft, of_all):
    assert [error.message for error in of_sft.iter_errors(values)] == []
    assert of_all.is_valid(values)


@pytest.mark.parametrize(
    "values",
    [
        {"lrr": 1},
        {"train": {"lrr": 1}},
        {"train.lrr": 1},
        {"lr": "x"},
        {"lr": -1},
        {"train.lr": 0},
        {"train": {"lr": True}},
        {"train": {"schedule": "cos"}},
        {"train": {"adam_beta1": 1}},
        {"seed": 1.5},
        {"data": {"packing": "yes"}},
        {"data": {"path": [{"path": "a", "wight": 2}]}},
        {"model": 3},
        {"beta": 0.1},
        {"stage": "x"},
        {"sweep": {"lr": 1}},
    ],
)
def test_wrong_keys_types_and_ranges_are_refused(values, of_sft, of_all):
    assert not of_sft.is_valid(values)
    assert not of_all.is_valid({"stage": "sft", **values})


@pytest.mark.parametrize("name", COMMANDS)
def test_every_key_has_its_default_and_every_default_fits(name):
    """The default of a key is one of its values, but where it means that none is given."""
    schema = recipe_schema([COMMANDS[name]])
    config, root = COMMANDS[name].config, schema["$defs"][name]
    assert {*field_types(config), *aliases(config)} <= root["properties"].keys()
    for key, option in options(config).items():
        found = (
            root["properties"].get(key) or root["patternProperties"][f"^{key}$".replace(".", r"\.")]
        )
        resolved = jsonschema.Draft202012Validator({**found, "$defs": schema["$defs"]})
        assert resolved.is_valid(option.default), key


def test_help_texts_ranges_and_choices_are_in_the_schema():
    schema = recipe_schema([COMMANDS["sft"]])
    train = schema["$defs"]["train"]["properties"]
    assert train["schedule"]["anyOf"][0] == {"enum": ["cosine", "linear", "constant", "wsd"]}
    assert train["schedule"]["default"] == "cosine"
    assert train["schedule"]["description"]
    assert train["min_lr_ratio"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 1}


def test_the_command_prints_it_for_one_command_or_all(capsys):
    assert cli.main(["schema", "bco"]) == 0
    assert json.loads(capsys.readouterr().out)["$defs"]["bco"]["properties"]["stage"] == {
        "const": "bco",
        "description": "The command that the recipe is for.",
    }
    assert cli.main(["schema"]) == 0
    assert capsys.readouterr().out == SHIPPED.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "line"),
    [(["dp"], "schema: got dp; need one of "), (["dpo", "sft"], "schema: got dpo sft; need one")],
)
def test_other_words_are_refused(words, line, capsys):
    assert cli.main(["schema", *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")


def test_torch_is_not_imported():
    program = (
        "import sys; from rlhf_cli.cli import main; main(['schema']); "
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "False"
