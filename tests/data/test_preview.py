import numpy as np

from rlhf_cli.data.examples import flatten
from rlhf_cli.data.preview import preview, shorten, show_first_example
from rlhf_cli.data.tokens.packing import SourceRow
from rlhf_cli.data.tokens.tokenize import TokenRow
from tests.data.toy import EOS, A, B, C, toy_tokenizer


def examples():
    tokens = np.array([A, B, C, EOS], np.int32)
    row = TokenRow(tokens, np.array([False, False, True, True]))
    return flatten([[SourceRow(row, "r.jsonl", 4)], [SourceRow(row, "r.jsonl", 5)]], ("r.jsonl",))


def test_trained_tokens_are_in_marks_where_there_is_no_colour(capsys):
    show_first_example(examples(), toy_tokenizer())
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["first row (r.jsonl:4), trained tokens marked:", "a b[[c <eos>]]"]


def test_trained_tokens_are_green_on_a_terminal():
    shown = preview(examples(), toy_tokenizer(), marks=False)
    assert [(span.start, span.end, span.style) for span in shown.spans] == [(3, 10, "bold green")]


def test_long_text_loses_its_middle():
    assert shorten("abcdefghij", most=4) == "ab ... ij"
    assert shorten("abcd", most=4) == "abcd"


def test_text_cannot_control_the_terminal():
    assert shorten("a\x1b[31m\n\tb\u202e") == "a\\x1b[31m\n\tb\\u202e"
