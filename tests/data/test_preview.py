import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from rlhf_cli.data.examples import flatten
from rlhf_cli.data.preview import Span, SpanDecoder, render_spans, shorten, show_first_example
from rlhf_cli.data.tokens.encode import TokenRow
from rlhf_cli.data.tokens.packing import ExampleRow
from tests.data.toy import BOS, EOS, A, B, C, toy_tokenizer


def examples():
    tokens = np.array([A, B, C, EOS], np.int32)
    row = TokenRow(tokens, np.array([False, False, True, True]))
    return flatten([[ExampleRow(row, "r.jsonl", 4)], [ExampleRow(row, "r.jsonl", 5)]], ("r.jsonl",))


def test_trained_tokens_are_in_marks_where_there_is_no_colour(capsys):
    show_first_example(examples(), toy_tokenizer())
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["first row (r.jsonl:4), trained tokens marked:", "a b[[ c <eos>]]"]


def preference_examples(*scores):
    tokens, trained = np.array([A, B, EOS], np.int32), np.array([False, True, True])
    rows = [ExampleRow(TokenRow(tokens, trained), "r.jsonl", 4, score) for score in scores]
    return flatten([rows], ("r.jsonl",))


@pytest.mark.parametrize(
    ("scores", "kind", "names"),
    [
        ((0.0, 0.0), "preference", ["chosen", "rejected"]),
        ((0.6, 0.0), "preference", ["chosen, margin 0.6", "rejected"]),
        ((2.0, -1.0), "ranked", ["row 1 of 2, score 2", "row 2 of 2, score -1"]),
        ((1.0,), "labelled", ["desirable"]),
        ((0.0,), "labelled_text", ["undesirable"]),
        ((0.25,), "scored", ["row 1 of 1, score 0.25"]),
        ((1.0, 1.0), "", ["row 1 of 2, score 1", "row 2 of 2, score 1"]),
    ],
)
def test_every_row_of_a_preference_example_is_shown_under_its_name(capsys, scores, kind, names):
    show_first_example(preference_examples(*scores), toy_tokenizer(), kind)
    head, *lines = capsys.readouterr().err.splitlines()
    assert head == "first example (r.jsonl:4), trained tokens marked:"
    assert lines[::2] == [f"- {name}:" for name in names]
    assert set(lines[1::2]) == {"a[[ b <eos>]]"}


def test_trained_tokens_are_green_on_a_terminal():
    spans = SpanDecoder(toy_tokenizer()).spans([A, B, C, EOS], [False, False, True, True])
    shown = render_spans(spans, marks=False)
    found = [(span.start, span.end, span.style) for span in shown.spans]
    assert found == [(3, 5, "bold green"), (5, 11, "green")]


def test_spans_are_the_text_of_the_row_cut_at_the_prompt_and_at_special_tokens():
    ids, trained = [BOS, A, B, C, EOS], [False, False, False, True, True]
    tokenizer = toy_tokenizer()
    spans = SpanDecoder(tokenizer).spans(ids, trained, border=2)
    assert [(span.start, span.end) for span in spans] == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert "".join(span.text for span in spans) == tokenizer.decode(ids)


def test_the_first_space_of_a_span_is_kept():
    """Decoders of SentencePiece vocabularies drop the space before the first token."""
    rules = Tokenizer(models.BPE({"▁": 0, "a": 1, "b": 2, "▁a": 3}, [("▁", "a")]))
    rules.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rules)
    spans = SpanDecoder(tokenizer).spans([3, 2, 3, 2], [False, False, True, True])
    assert [span.text for span in spans] == ["ab", " ab"]


def test_line_ends_and_outer_spaces_can_be_seen():
    span = Span(0, 1, " a\n b ", trained=True, special=False)
    assert render_spans([span], marks=True, visible=True).plain == "[[·a↵\n b·]]"


def test_long_text_loses_its_middle():
    assert shorten("abcdefghij", max_characters=4) == "ab ... ij"
    assert shorten("abcd", max_characters=4) == "abcd"


def test_text_cannot_control_the_terminal():
    assert shorten("a\x1b[31m\n\tb\u202e") == "a\\x1b[31m\n\tb\\u202e"


def test_long_texts_are_whole_where_that_is_asked_for(capsys):
    tokens = np.array([A] * 600 + [B, EOS], np.int32)
    row = TokenRow(tokens, np.arange(602) >= 600)
    long = flatten([[ExampleRow(row, "r.jsonl", 4)]], ("r.jsonl",))
    for full in (True, False):
        show_first_example(long, toy_tokenizer(), full=full)
        assert (capsys.readouterr().err.count("a ") > 590) == full
