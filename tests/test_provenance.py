"""`--cfg --provenance`: which layer each value comes from."""

from pathlib import Path

import pytest

from rlhf_cli import cli
from rlhf_cli.config.args import parse
from rlhf_cli.config.provenance import trace
from rlhf_cli.config.schema import flatten
from rlhf_cli.registry import COMMANDS
from rlhf_cli.resolve import Resolved, resolve

TINY = ("model=tiny", "data=tiny")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def origins_of(resolved: Resolved) -> dict[str, str]:
    return trace(resolved.public_tree, resolved.layers, resolved.overrides)


def origins(*words: str) -> dict[str, str]:
    return origins_of(resolve(COMMANDS["sft"], parse(COMMANDS["sft"], list(words))))


def test_every_key_has_one_origin_and_most_are_defaults():
    resolved = resolve(COMMANDS["sft"], parse(COMMANDS["sft"], list(TINY)))
    found = origins_of(resolved)
    assert found.keys() == flatten(resolved.tree).keys()
    assert found["train.lr"] == "default"
    assert found["model.path"] == "model=tiny, command line  (configs/model/tiny.yaml:2)"


def test_the_last_of_several_layers_is_named():
    Path("a.yaml").write_text("train:\n  lr: 1e-3\n  epochs: 2\n  batch_size: 8\n")
    Path("b.yaml").write_text("train: {lr: 1e-4}\ntrain.epochs: 2\n")
    found = origins(*TINY, "config=a.yaml", "config=b.yaml", "lr=1e-5")
    assert [found[f"train.{key}"] for key in ("lr", "epochs", "batch_size", "schedule")] == [
        "command line", "b.yaml:2", "a.yaml:4", "default",
    ]  # fmt: skip


def test_a_value_that_equals_the_default_is_still_the_users():
    assert origins(*TINY, "seed=0")["seed"] == "command line"


def test_keys_of_a_recipe_stay_beside_a_preset_of_the_command_line():
    Path("a.yaml").write_text("adapter: {rank: 4}")
    found = origins(*TINY, "config=a.yaml", "adapter=dora")
    assert found["adapter.rank"] == "a.yaml:1"
    assert found["adapter.kind"] == "adapter=dora, command line  (configs/adapter/dora.yaml:2)"


def test_a_preset_counts_only_where_it_is_the_last_of_its_group():
    Path("a.yaml").write_text("train: smoke\ntrain.max_steps: 7\nmodel: llama_8m")
    found = origins("config=a.yaml", *TINY)
    assert found["train.max_steps"] == "a.yaml:2"
    assert found["train.batch_size"] == "train=smoke, a.yaml:1  (configs/train/smoke.yaml:3)"
    assert (found["model.path"][:10], found["model.init"]) == ("model=tiny", "default")


def test_only_the_named_keys_of_a_mapping_are_the_command_lines():
    Path("a.yaml").write_text("train: {lr: 1e-3, epochs: 2}\ndata.columns: {prompt: q}")
    words = ("train={epochs: 3}", "data.columns.completion=a")
    found = origins(*TINY, "config=a.yaml", *words)
    assert (found["train.lr"], found["train.epochs"]) == ("a.yaml:1", "command line")
    assert found["data.columns.prompt"] == "a.yaml:2"
    assert found["data.columns.completion"] == "command line"


def test_a_path_given_as_a_group_is_the_key_path():
    Path("a.yaml").write_text("\nmodel: org/name")
    assert origins("config=a.yaml", "data=tiny")["model.path"] == "a.yaml:2"
    assert origins("model=org/name", "data=tiny")["model.path"] == "command line"


@pytest.mark.parametrize("words", [["--provenance"], ["--cfg", "--provenance"]])
def test_the_table_is_aligned_and_nothing_runs(words, capsys):
    assert cli.main(["sft", *TINY, "seed=3", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    [seed] = [line for line in lines if line.startswith("seed ")]
    assert seed.split(maxsplit=2) == ["seed", "3", "command line"]
    assert {line.index("default") for line in lines if line.endswith(" default")} == {
        seed.index("command line")
    }
    assert list(Path().iterdir()) == []


def test_a_recipe_found_without_being_asked_for_is_named(capsys):
    assert cli.main(["sft", "--provenance"]) == 0
    assert " tiny/sft.yaml:" in capsys.readouterr().out
