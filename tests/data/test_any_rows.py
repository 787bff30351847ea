"""Whatever the rows hold: they are counted, or the error is ours."""

import contextlib
import csv
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.examples import flatten
from rlhf_cli.data.records.reader import KINDS, RecordReader
from rlhf_cli.data.records.types import (
    ChatRecord,
    LabelledRecord,
    PreferenceRecord,
    PromptCompletionRecord,
    RankedRecord,
    ScoredRecord,
    TextRecord,
)
from rlhf_cli.data.report import DataReport
from rlhf_cli.data.sources.base import RawRow
from rlhf_cli.data.sources.files import read_rows
from rlhf_cli.data.tokens.record_tokenizer import RecordTokenizer
from rlhf_cli.errors import DataError
from tests.data.toy import toy_tokenizer, turns

ANY = tuple(kind.record for kind in KINDS)
TRAINED = (PromptCompletionRecord, ChatRecord, TextRecord)
PREFERENCE = (PreferenceRecord, RankedRecord, ScoredRecord, LabelledRecord)
TOKENIZER = toy_tokenizer()

texts = st.text(max_size=20) | st.sampled_from(
    [
        "",
        " ",
        "<eos>",
        "<turn>",
        "a\x00b",
        "\ud800",
        "\n\nAssistant: a",
        "{x}",
        "\u2028",
        "a" * 3000,
    ]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
roles = st.sampled_from(["user", "assistant", "system", "tool", "developer", "human", "gpt"])
messages = st.lists(
    st.fixed_dictionaries({"role": roles | values, "content": texts | values})
    | st.fixed_dictionaries({"from": roles | values, "value": texts | values})
    | values,
    max_size=4,
)
trees = st.recursive(
    st.fixed_dictionaries({"text": texts, "role": roles, "replies": values}),
    lambda inner: st.fixed_dictionaries(
        {"text": texts, "role": roles, "replies": st.lists(inner, max_size=2), "rank": scalars}
    ),
    max_leaves=4,
)
cells = texts | messages | messages.map(json.dumps) | messages.map(repr) | trees
COLUMNS = (
    "prompt completion messages chosen rejected label text margin responses scores score tools"
)
SHAPES = "conversations instruction input output history system kto_tag labels human_ref_A role"
names = st.sampled_from(f"{COLUMNS} {SHAPES}".split())
rows = st.dictionaries(names | texts, texts | messages | values, max_size=5)
shaped = st.sampled_from(
    [
        ("prompt", "completion"),
        ("prompt", "chosen", "rejected"),
        ("messages",),
        ("messages", "chosen", "rejected"),
        ("conversations",),
        ("instruction", "output"),
        ("instruction", "output", "history", "system"),
        ("history", "human_ref_A", "human_ref_B", "labels"),
    ]
).flatmap(lambda columns: st.fixed_dictionaries(dict.fromkeys(columns, cells)))
lines = (rows | shaped | values).map(json.dumps) | texts.filter(lambda text: "\n" not in text)
kinds = st.sampled_from(["auto", *(kind.name for kind in KINDS)])
templates = st.sampled_from([{}, {"prompt": "Q: {text}"}, {"text": "{prompt}{completion.a}"}])


def consume(path, allowed, kind="auto", columns=None):
    """Read all rows and make examples of those that can be trained; every row is counted."""
    cfg = DataConfig(max_bad_rows=999, format=kind, columns=columns or {}, max_length=64)
    report = DataReport((path.name,))
    records = RecordReader(cfg, "test", allowed, report).read(read_rows([path]))
    if allowed is ANY:
        read = len(list(records))
        report.kept = read
    else:
        flatten(RecordTokenizer(TOKENIZER, cfg, report).examples(records), report.files)
    refused = sum(found.rows for found in report.refused.values())
    assert report.rows == report.kept + report.malformed + refused
    assert json.dumps(report.to_dict()).encode()


def check(content, name, *args):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        with contextlib.suppress(DataError):
            consume(path, *args)


def encoded(found):
    return "\n".join(found).encode("utf-8", "surrogatepass")


quick = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
thorough = settings(quick, max_examples=10_000)


@quick
@given(st.lists(lines, max_size=5), st.sampled_from([ANY, TRAINED]), kinds, templates)
def test_any_json_lines(found, allowed, kind, columns):
    check(encoded(found), "r.jsonl", allowed, kind, columns)


replies = texts | messages
preference_rows = st.fixed_dictionaries(
    {},
    optional={
        "prompt": replies,
        "completion": replies,
        "text": texts,
        "chosen": replies,
        "rejected": replies,
        "margin": scalars,
        "label": scalars | st.sampled_from(["true", "No", "1"]),
        "score": scalars,
        "responses": st.lists(replies, max_size=4) | values,
        "scores": st.lists(scalars, max_size=4) | values,
    },
)


def good_turns(*ends):
    """Messages of user and assistant in turn, up to one of those who end them."""
    count = st.integers(1, 4).filter(lambda n: n % 2 in ends)
    said = st.text("abc <", min_size=1, max_size=9)
    return count.flatmap(lambda n: st.lists(said, min_size=n, max_size=n)).map(
        lambda said: turns(*said)
    )


words = st.text("ab ", min_size=1, max_size=12) | st.sampled_from(["", "b<eos>", "a" * 70])
numbers = st.floats(-2, 2) | st.integers(-1, 1)
asked = words | good_turns(1)
well_formed = st.one_of(
    st.fixed_dictionaries({"prompt": asked, "chosen": words, "rejected": words}),
    st.fixed_dictionaries({"chosen": good_turns(0), "rejected": good_turns(0)}),
    st.fixed_dictionaries({"prompt": asked, "completion": words, "label": st.booleans()}),
    st.fixed_dictionaries({"prompt": asked, "completion": words, "score": numbers}),
    st.fixed_dictionaries({"text": words, "score": numbers}),
    st.lists(st.tuples(words, numbers), min_size=1, max_size=4).flatmap(
        lambda said: st.fixed_dictionaries(
            {
                "prompt": asked,
                "responses": st.just([text for text, _ in said]),
                "scores": st.just([number for _, number in said]),
            }
        )
    ),
)


@quick
@given(st.lists(preference_rows | well_formed, min_size=1, max_size=4), kinds)
def test_any_preference_rows(found, kind):
    check(encoded(map(json.dumps, found)), "r.jsonl", PREFERENCE, kind)


@quick
@given(
    well_formed,
    st.integers(2, 20),
    st.sampled_from(["prompt_start", "response_end", "refuse"]),
    st.booleans(),
)
def test_preference_rows_share_a_prompt_and_end_with_their_response(
    row, most, truncation, adds_bos
):
    report = DataReport(("r.jsonl",))
    cfg = DataConfig(max_bad_rows=1, max_length=most, truncation=truncation)
    raw = RawRow("r.jsonl", 1, row)
    record_tokenizer = RecordTokenizer(toy_tokenizer(adds_bos=adds_bos), cfg, report)
    records = RecordReader(cfg, "test", PREFERENCE, report).read([raw])
    made = list(record_tokenizer.examples(records))
    assert len(made) == report.kept == 1 - report.malformed - bool(report.refused)
    for example in made:
        firsts = [int(source.row.loss_mask.argmax()) for source in example]
        prompts = {source.row.tokens[: firsts[0]].tobytes() for source in example}
        assert len(prompts) == 1 <= firsts[0]
        assert len(set(firsts)) == 1
        if not report.cut:
            assert all(source.row.loss_mask[-1] for source in example)
        assert max(map(len, example)) <= most
        assert len({source.row.tokens.tobytes() for source in example}) > 1 or len(example) == 1
        assert np.isfinite(flatten([example], ("r.jsonl",)).columns["score"]).all()


@quick
@given(
    st.binary(max_size=60)
    | st.lists(rows | values, max_size=3).map(lambda r: json.dumps(r).encode())
)
def test_any_json_file(content):
    check(content, "r.json", ANY)


@quick
@given(
    st.binary(max_size=60)
    | texts.map(lambda t: b"prompt,completion,label\n" + t.encode("utf-8", "replace"))
)
def test_any_table(content):
    check(content, "r.csv", ANY)
    check(content, "r.tsv", TRAINED)


@quick
@given(st.lists(st.tuples(texts, texts), max_size=3))
def test_any_cells_of_a_table(cells):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.csv"
        with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
            csv.writer(file).writerows([("prompt", "completion"), *cells])
        written = sum(1 for _ in cells)
        if not written:
            return
        rows_read = [row.parsed for row in read_rows([path])]
        assert all(isinstance(found, dict) for found in rows_read)
        assert len(rows_read) == written


@pytest.mark.slow
@thorough
@given(st.lists(lines, max_size=5), st.sampled_from([ANY, TRAINED]), kinds, templates)
def test_many_json_lines(found, allowed, kind, columns):
    check(encoded(found), "r.jsonl", allowed, kind, columns)


@pytest.mark.slow
@thorough
@given(st.lists(preference_rows | well_formed, min_size=1, max_size=4), kinds)
def test_many_preference_rows(found, kind):
    check(encoded(map(json.dumps, found)), "r.jsonl", PREFERENCE, kind)
