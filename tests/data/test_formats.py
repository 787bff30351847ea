"""Every format gives the same rows, and says where it is broken."""

import csv
import gzip
import json

import pytest

from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.records.reader import RecordReader
from rlhf_cli.data.records.types import LabelledRecord, PromptCompletionRecord, ScoredRecord
from rlhf_cli.data.report import DataReport, MalformedRow
from rlhf_cli.data.sources.files import READERS, find_data_files, read_rows
from rlhf_cli.errors import DataError

ROWS = [
    {"prompt": 'say "hi", twice', "completion": "hi\nhi"},
    {"prompt": "é 日本", "completion": "b\ttab"},
    {"prompt": "", "completion": " c"},
]


def write(path, rows):
    """The rows in the format that the suffix names."""
    import pyarrow
    from pyarrow import parquet

    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    match kind:
        case "jsonl":
            content = "".join(f"{json.dumps(row)}\n" for row in rows)
        case "json":
            content = json.dumps(rows, indent=1, ensure_ascii=False)
        case "csv" | "tsv":
            with path.open("w", encoding="utf-8", newline="") as file:
                dialect = "excel" if kind == "csv" else "excel-tab"
                table = csv.DictWriter(file, list(rows[0]), dialect=dialect)
                table.writeheader()
                table.writerows(rows)
            content = path.read_bytes().decode()
        case "parquet":
            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
            return path
    path.write_bytes(content.encode())
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content.encode()))
    return path


def read(path):
    return [(row.line, row.parsed) for row in read_rows(find_data_files(path).files)]


def broken(path):
    """`line: what` of the rows that cannot be read."""
    return [f"{line}: {found}" for line, found in read(path) if isinstance(found, MalformedRow)]


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.json.gz", "A.CSV.GZ"],
)
def test_every_format_gives_the_same_rows(tmp_path, name):
    path = write(tmp_path / name.lower(), ROWS).rename(tmp_path / name)
    assert [found for _, found in read(path)] == ROWS


def test_every_known_suffix_is_tested():
    assert set(READERS) == {".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt"}


@pytest.mark.parametrize(
    "content",
    [
        '{"data": [{"text": "a"}, {"text": "b"}], "version": 1}',
        '\ufeff[{"text": "a"},\n {"text": "b"}]',
        '{"text": "a"}\n\n{"text": "b"}\n',
    ],
)
def test_a_json_file_holds_a_list_of_objects_or_lines(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    assert [found for _, found in read(tmp_path / "a.json")] == [{"text": "a"}, {"text": "b"}]


def test_a_json_file_of_one_object_is_one_row(tmp_path):
    (tmp_path / "a.json").write_text('{\n "text": "a"\n}')
    assert read(tmp_path / "a.json") == [(1, {"text": "a"})]


def test_broken_json_says_its_line(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "a"},\n {"text": }]')
    assert broken(tmp_path / "a.json") == ["2: broken JSON: Expecting value at column 11"]
    (tmp_path / "a.json").write_text('[{"text": "a"}, 3, null]')
    assert broken(tmp_path / "a.json") == [
        "2: got 3; need a JSON object",
        "3: got null; need a JSON object",
    ]
    (tmp_path / "a.json").write_text('{"text": "a"}\n{"text"\n{"text": "c"}\n')
    assert broken(tmp_path / "a.json") == ["2: broken JSON: Expecting ':' delimiter at column 8"]


def test_a_csv_row_knows_its_first_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbftext\r\n"one\r\ntwo"\r\n\r\nthree\r\n')
    assert read(path) == [(2, {"text": "one\r\ntwo"}), (5, {"text": "three"})]


def test_a_carriage_return_alone_ends_no_row_of_a_csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'text\n"one\rtwo"\r\nthree\rfour\nfive\n')
    assert [row for row in read(path) if isinstance(row[1], dict)] == [
        (2, {"text": "one\rtwo"}),
        (4, {"text": "five"}),
    ]
    assert broken(path) == [
        "3: a carriage return outside quotes; quote the cell, end lines with \\n"
    ]


def test_a_csv_cell_may_be_long(tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + "x" * 200_000)
    assert len(read(tmp_path / "a.csv")[0][1]["text"]) == 200_000


def test_broken_rows_of_a_csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,id\na,1\nb\nc,d,e\n"x"y,2\n\xe9,3\nlast,4\n"open,5\n')
    assert broken(path) == [
        "3: 1 cells under 2 columns; quote text with commas",
        "4: 3 cells under 2 columns; quote text with commas",
        "5: broken quotes: ',' expected after '\"'",
        "6: not UTF-8: byte 0xe9; save the file as UTF-8",
        "8: broken quotes: unexpected end of data",
    ]
    assert [found for _, found in read(path) if isinstance(found, dict)] == [
        {"text": "a", "id": "1"},
        {"text": "last", "id": "4"},
    ]


@pytest.mark.parametrize("header", ["text,text", "text,", ",text"])
def test_a_csv_needs_a_header(tmp_path, header):
    (tmp_path / "a.csv").write_text(f"{header}\na,b\n")
    with pytest.raises(DataError, match=r"^a\.csv:1: the columns are .*need a first line of names"):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json"])
def test_a_file_without_rows_is_an_error(tmp_path, name):
    for content in ("", "prompt\n" if name != "a.json" else "[]"):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=f"^{name}: the file is empty"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "cut.jsonl.gz"])
def test_a_damaged_file_is_an_error(tmp_path, name):
    content = gzip.compress(b'{"text": "a"}\n' * 99)[:-12] if "cut" in name else b"no such thing"
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: cannot be read"):
        read(tmp_path / name)


def test_parquet_rows_are_counted_over_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_cli.data.sources.files.BATCH_ROWS", 2)
    path = write(tmp_path / "a.parquet", [{"text": str(i)} for i in range(5)])
    assert read(path) == [(i + 1, {"text": str(i)}) for i in range(5)]


def test_parquet_text_that_is_not_utf_8_is_one_malformed_row(tmp_path):
    import pyarrow
    from pyarrow import parquet

    text = pyarrow.array([b"a", b"\xe9", b"c"]).cast(pyarrow.string(), safe=False)
    parquet.write_table(pyarrow.table({"text": text}), tmp_path / "a.parquet")
    assert broken(tmp_path / "a.parquet") == ["2: not UTF-8: byte 0xe9; save the file as UTF-8"]
    assert len(read(tmp_path / "a.parquet")) == 3


def records(path, *allowed):
    report = DataReport()
    reader = RecordReader(DataConfig(max_bad_rows=9), "test", allowed, report)
    return [item.record for item in reader.read(read_rows([path]))], report


def test_labels_of_a_csv_are_read_as_those_of_json(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion,label\np,c,True\np,d,no\np,e,0.0\np,f,\np,g,bad\n")
    found, report = records(path, LabelledRecord)
    assert [record.label for record in found] == [True, False, False]
    assert report.malformed_shown == [
        'a.csv:5: label: got ""; need true or false, yes or no, 1 or 0',
        'a.csv:6: label: got "bad"; need true or false, yes or no, 1 or 0',
    ]


def test_scores_of_a_csv_are_numbers(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,score\na,1\nb,-0.5\nc,nan\nd,Infinity\ne,\n")
    found, report = records(path, ScoredRecord)
    assert found == [ScoredRecord("", "a", 1.0), ScoredRecord("", "b", -0.5)]
    assert report.malformed_shown == [
        'a.csv:4: score: got "nan"; need a number',
        "a.csv:5: score: got Infinity; need a finite number",
        "a.csv:6: no column score; found text; null: score. See rlhf docs data",
    ]


def test_text_of_a_csv_stays_text(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion\n1,2\nnull,[3]\n")
    found, _ = records(path, PromptCompletionRecord)
    assert found == [PromptCompletionRecord("1", "2"), PromptCompletionRecord("null", "[3]")]


def test_values_of_other_types_than_json_has_are_shown(tmp_path):
    import datetime

    path = write(tmp_path / "a.parquet", [{"prompt": datetime.date(2026, 1, 2), "completion": "c"}])
    _, report = records(path, PromptCompletionRecord)
    assert report.malformed_shown == [
        'a.parquet:1: prompt: got "2026-01-02"; need text or a list of messages'
    ]
