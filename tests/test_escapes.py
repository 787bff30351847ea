r"""`\n` and its like in text from the command line."""

from pathlib import Path

import pytest

from rlhf_cli import cli
from rlhf_cli.config.args import parse
from rlhf_cli.registry import COMMANDS
from rlhf_cli.resolve import Resolved, resolve


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def compose(command: str, *words: str) -> Resolved:
    return resolve(COMMANDS[command], parse(COMMANDS[command], list(words)))


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        ([r'sampling.stop=["\n"]'], "stop", ["\n"]),
        ([r'sampling.stop=["\n","\\n\t","its\r", plain, "\d"]'], "stop",
         ["\n", "\\n\t", "its\r", "plain", r"\d"]),
        ([r"sampling.stop=['a\n', 'true', '3', '']"], "stop", ["a\n", "true", "3", ""]),
        ([r'sampling={stop: ["\n"], temperature: 0.5}'], "stop", ["\n"]),
        (["sampling.stop=['\n']"], "stop", ["\n"]),
        (["sampling.stop=[END]"], "stop", ["END"]),
    ],
)  # fmt: skip
def test_a_stop_string_typed_with_an_escape(words, key, value):
    config = compose("generate", "model=tiny", "prompt=a", *words).config
    assert getattr(config.sampling, key) == value


@pytest.mark.parametrize(
    "word",
    [
        r"data.columns.prompt=Question: {q}\n\nAnswer:",
        r'data.columns.prompt="Question: {q}\n\nAnswer:"',
        r'data.columns={prompt: "Question: {q}\n\nAnswer:"}',
        r'data={path: tiny, columns: {prompt: "Question: {q}\n\nAnswer:"}}',
    ],
)
def test_a_text_of_columns_typed_with_escapes(word):
    words = ["model=tiny", word, *([] if word.startswith("data=") else ["data=tiny"])]
    config = compose("sft", *words).config
    assert config.data.columns == {"prompt": "Question: {q}\n\nAnswer:"}


def test_escapes_in_the_columns_of_one_source_of_several():
    word = r"data.path=[tiny,{path: tiny, columns: {prompt: '{q}\n\\n'}}]"
    config = compose("sft", "model=tiny", word).config
    assert config.data.path[1].columns == {"prompt": "{q}\n\\n"}


def test_other_texts_and_recipes_are_taken_as_they_stand():
    Path("a.yaml").write_text(r"""sampling: {stop: ['\n', "\n"]}""")
    config = compose("generate", "config=a.yaml", "model=tiny", r"prompt=a\nb $\theta$").config
    assert (config.prompt, config.sampling.stop) == (r"a\nb $\theta$", [r"\n", "\n"])


def test_escapes_stand_in_the_configuration_that_is_shown(capsys):
    words = ["generate", "model=tiny", "prompt=a", r'sampling.stop=["\n"]', "--cfg"]
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert '  - "\\n"\n' in shown
    Path("again.yaml").write_text(shown)
    assert compose("generate", "config=again.yaml").config.sampling.stop == ["\n"]
