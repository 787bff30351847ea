"""`data.path` and `data.eval` as a user types them."""

import pytest

from rlhf_cli.config.args import parse
from rlhf_cli.data.config import SourceConfig
from rlhf_cli.data.records.columns import ColumnMapping
from rlhf_cli.errors import ConfigError, DataError
from rlhf_cli.registry import COMMANDS
from rlhf_cli.resolve import resolve


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.csv"):
        (tmp_path / name).touch()
    return tmp_path


def data(*argv):
    command = COMMANDS["pretrain"]
    return resolve(command, parse(command, ["model=tiny", *argv])).config.data


def test_a_list_of_files_and_sources(folder):
    a, b = str(folder / "a.jsonl"), str(folder / "b.csv")
    assert data("data=[a.jsonl,b.csv]").path == [a, b]
    found = data("data=[a.jsonl,{path: b.csv, weight: 2, columns: {text: review}}]").path
    assert found == [a, SourceConfig(path=b, weight=2.0, columns={"text": "review"})]


def test_sources_of_a_recipe_are_relative_to_it(folder, monkeypatch):
    (folder / "r.yaml").write_text(
        "data:\n  path: [a.jsonl, {path: ./b.csv, weight: 0.5}]\n  eval: 0.05\n"
    )
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    found = data("config=../r.yaml")
    assert found.path == [
        str(folder / "a.jsonl"),
        SourceConfig(path=str(folder / "b.csv"), weight=0.5),
    ]
    assert found.eval == 0.05


def test_a_text_of_columns_as_the_page_types_it():
    typed = r'data.columns.prompt="Question: {question}\n\nAnswer:"'
    columns = data("data=a.jsonl", typed, 'data.columns.completion=" {answer}"').columns
    row = ColumnMapping(columns).rename({"question": "q", "answer": "a"})
    assert (row["prompt"], row["completion"]) == ("Question: q\n\nAnswer:", " a")


@pytest.mark.parametrize(
    ("typed", "value"),
    [("0.05", 0.05), ("200", 200), ("none", "none"), ("org/name", "org/name")],
)
def test_held_out_rows(typed, value):
    assert data("data=a.jsonl", f"data.eval={typed}").eval == value


def test_held_out_files(folder):
    assert data("data=a.jsonl", "data.eval=b.csv").eval == str(folder / "b.csv")
    assert data("data=a.jsonl", "data.eval=[b.csv]").eval == [str(folder / "b.csv")]


@pytest.mark.parametrize(
    ("argv", "kind", "message"),
    [
        ("data=gone.csv", DataError, "data.path: got gone.csv; need a file or folder that exists"),
        ("data=[gone.csv]", DataError, "data.path[0]: got gone.csv; need a file or folder"),
        ("data=no/gone.csv", DataError, "data.path: got no/gone.csv; need a file or folder"),
        ("data=[{weight: 2}]", ConfigError, "data.path: a source without path; need one, as in"),
        ("data=[]", ConfigError, "data.path: got an empty list; need at least one source"),
        (
            "data=[{path: a.jsonl, wieght: 2}]",
            ConfigError,
            "data.path[0].wieght: no such key; need one of path, weight, name, revision, split, ",
        ),
        (
            "data=[{path: a.jsonl, weight: 0}]",
            ConfigError,
            "data.path[0].weight: got 0; need a number > 0",
        ),
        ("data.eval=1.5", ConfigError, "data.eval: got 1.5; need a share between 0 and 1, or"),
        ("data.eval=0", ConfigError, "data.eval: got 0; need at least 1 row. Try data.eval=100"),
    ],
)
def test_what_cannot_be_is_one_line(argv, kind, message):
    with pytest.raises(kind) as error:
        data(*(["data=a.jsonl"] if argv.startswith("data.eval") else []), argv)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
