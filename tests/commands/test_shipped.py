"""`rlhf recipes`: what it lists, prints and copies, and what it says to wrong words."""

import shutil
from pathlib import Path

import pytest

from rlhf_cli import cli, resources
from rlhf_cli.commands import shipped
from rlhf_cli.commands.shipped import MODELINE, SCHEMA
from rlhf_cli.config import recipe
from rlhf_cli.config.args import parse
from rlhf_cli.registry import COMMANDS
from rlhf_cli.resolve import resolve
from tests.helpers import recipe_words


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "working"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def relative(tmp_path, monkeypatch) -> Path:
    """A package whose only recipe names files beside itself; the folder of that recipe."""
    package = tmp_path / "package"
    shutil.copytree(resources.shipped_folder("configs"), package / "configs")
    own = package / "recipes" / "own"
    own.mkdir(parents=True)
    for name in ("rows.jsonl", "more.jsonl", "x.jinja"):
        (own / name).touch()
    (own / "chats.yaml").write_text(
        "# Rows beside it.\nstage: sft\nmodel:\n  path: tiny\n  chat_template: x.jinja  # beside\n"
        "data:\n  path:\n    - ./rows.jsonl\n    - path: more.jsonl\n      weight: 2\n"
    )
    monkeypatch.setattr(resources, "PACKAGE", package)
    return own


def tree(name: str) -> dict:
    stage, words = recipe_words(name)
    command = COMMANDS[stage]
    return resolve(command, parse(command, words)).tree


@pytest.mark.parametrize("words", [["recipes"], ["recipes", "ls"]])
def test_the_list_has_every_recipe_with_its_purpose_in_100_columns(words, capsys):
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line[0] != " "] == resources.recipe_names()
    assert max(map(len, lines)) <= 100
    [pretrain] = [line for line in lines if line.startswith("tiny/pretrain ")]
    assert pretrain.split(maxsplit=1)[1].startswith("Domain pretraining of the tiny model")


@pytest.mark.parametrize("name", resources.recipe_names())
def test_a_recipe_starts_with_its_schema_and_its_purpose(name):
    schema, purpose, *_ = recipe.find(name).read_text().split("\n")
    assert schema.startswith(MODELINE)
    assert purpose.startswith("# ")
    assert purpose.endswith(".")


def test_a_copy_names_the_shipped_schema_wherever_it_is():
    assert cli.main(["recipes", "cp", "zephyr/twin/sft", "my.yaml"]) == 0
    first = Path("my.yaml").read_text().partition("\n")[0]
    assert first == f"{MODELINE}{resources.shipped_folder('configs') / SCHEMA}"


def test_the_base_of_a_copy_is_an_absolute_path(folder, monkeypatch):
    Path("own").mkdir()
    Path("own/b.yaml").write_text("stage: sft\nseed: 7\n")
    Path("own/a.yaml").write_text("stage: sft\nbase: ./b.yaml  # first\n")
    monkeypatch.setattr(resources, "shipped_folder", lambda kind: folder)
    monkeypatch.setattr("rlhf_cli.commands.shipped.shipped_folder", lambda kind: folder)
    assert cli.main(["recipes", "cp", "own/a", "my.yaml"]) == 0
    assert Path("my.yaml").read_text() == f"stage: sft\nbase: {folder}/own/b.yaml  # first\n"


def test_show_prints_the_file(capsys):
    text = recipe.find("tiny/sft").read_text()
    for name in ("tiny/sft", "tiny/sft.yaml"):
        assert cli.main(["recipes", "show", name]) == 0
        assert capsys.readouterr().out == text


@pytest.mark.parametrize("name", resources.recipe_names())
def test_a_copy_gives_the_same_configuration(name):
    assert cli.main(["recipes", "cp", name, "my.yaml"]) == 0
    assert tree("my.yaml") == tree(name)


def test_a_copy_goes_by_the_name_of_the_recipe_or_of_its_target(folder, capsys):
    Path("sub").mkdir()
    for words in (["tiny/sft"], ["tiny/sft", "sub"], ["tiny/sft", "sub/mine.yaml"]):
        assert cli.main(["recipes", "cp", *words]) == 0
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml")) == [
        "sft.yaml", "sub/mine.yaml", "sub/sft.yaml",
    ]  # fmt: skip
    assert capsys.readouterr().out.splitlines()[0] == (
        "sft.yaml: a copy of tiny/sft. Change it, then run rlhf sft config=sft.yaml"
    )


def test_files_beside_the_recipe_are_named_by_absolute_paths_in_the_copy(relative, capsys):
    assert cli.main(["recipes", "cp", "own/chats", "my.yaml"]) == 0
    assert tree("my.yaml") == tree("own/chats")
    assert f"chat_template: {relative}/x.jinja  # beside\n" in Path("my.yaml").read_text()
    assert capsys.readouterr().err.splitlines() == [
        f"my.yaml: model.chat_template is {relative}/x.jinja",
        f"my.yaml: data.path[0] is {relative}/rows.jsonl",
        f"my.yaml: data.path[1].path is {relative}/more.jsonl",
    ]


def test_nothing_is_overwritten(capsys):
    Path("sft.yaml").write_text("mine")
    assert cli.main(["recipes", "cp", "tiny/sft"]) == 2
    assert Path("sft.yaml").read_text() == "mine"
    assert capsys.readouterr().err == (
        "error: recipes cp: sft.yaml is there already. Try rlhf recipes cp tiny/sft sft-2.yaml\n"
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["shw"], "recipes: got shw; need one of ls, show, cp. Try rlhf recipes show"),
        (["tiny/sft"], "recipes: got tiny/sft; need one of ls, show, cp. "
         "Try rlhf recipes show tiny/sft"),
        (["show", "tiny/stf"], "recipes show: tiny/stf is no shipped recipe. "
         "Try rlhf recipes show tiny/sft"),
        (["cp", "sft"], "recipes cp: sft is no shipped recipe. Try rlhf recipes cp tiny/sft"),
        (["show", "zzz"], "recipes show: zzz is no shipped recipe. See rlhf recipes ls"),
        (["show", "a", "b"], "recipes show: got a b; need one name. See rlhf recipes --help"),
        (["ls", "a"], "recipes ls: got a; need no arguments. See rlhf recipes --help"),
        (["cp", "tiny/sft", "nowhere/x.yaml"], "recipes cp: nowhere/x.yaml cannot be written "
         "(no such file or directory)"),
    ],
)  # fmt: skip
def test_wrong_words_are_one_line(words, line, capsys):
    assert cli.main(["recipes", *words]) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_a_missing_name_is_asked_for(capsys):
    assert cli.main(["recipes", "show"]) == 2
    assert capsys.readouterr().err.startswith("error: recipes show: got no name; need that of a ")


def test_a_layer_for_any_stage_is_copied_with_the_paths_of_each(relative, capsys):
    layer = relative / "layer.yaml"
    layer.write_text("# For any.\nmodel:\n  chat_template: x.jinja\nptx_data: rows.jsonl\n")
    assert cli.main(["recipes", "cp", "own/layer", "my.yaml"]) == 0
    assert f"chat_template: {relative}/x.jinja\n" in Path("my.yaml").read_text()
    assert f"ptx_data: {relative}/rows.jsonl\n" in Path("my.yaml").read_text()
    assert capsys.readouterr().out.endswith("then run rlhf STAGE config=my.yaml\n")


def test_a_copy_finds_the_functions_of_several_rewards(tmp_path, monkeypatch):
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "judge.py").write_text("def score(prompts, responses, **columns): ...\n")
    recipe = (
        "stage: ppo\nmodel: tiny\ndata: tiny\nreward:\n  terms:\n    - function: judge.py:score\n"
    )
    (folder / "mine.yaml").write_text(recipe)
    copied = shipped._with_absolute_paths(folder / "mine.yaml", tmp_path / "copy.yaml")
    assert f"function: {folder}/judge.py:score\n" in copied
