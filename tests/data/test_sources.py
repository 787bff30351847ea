import pytest

from rlhf_cli.data.report import MalformedRow
from rlhf_cli.data.sources.files import (
    find_data_files,
    fingerprint_files,
    read_rows,
    resolve_data_path,
)
from rlhf_cli.errors import DataError
from rlhf_cli.resources import shipped_folder
from tests.data.toy import write_jsonl


def rows(path):
    return [(row.file, row.line, row.columns()) for row in read_rows(find_data_files(path).files)]


def test_a_jsonl_file_has_a_row_a_line_and_blank_lines_are_none(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"text": "a"}\n\n  \r\n{"text": "b\\u2028"}\r\n{"text": "c"}')
    assert rows(path) == [
        ("r.jsonl", 1, {"text": "a"}),
        ("r.jsonl", 4, {"text": "b\u2028"}),
        ("r.jsonl", 5, {"text": "c"}),
    ]


def test_a_txt_file_is_one_document_as_it_stands(tmp_path):
    path = tmp_path / "play.TXT"
    path.write_bytes(b"one\r\n\r\ntwo ")
    assert rows(path) == [("play.TXT", 1, {"text": "one\r\n\r\ntwo "})]


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", b'{"text": "x"}\n'), ("a.txt", b"x")])
def test_a_byte_order_mark_is_no_text(tmp_path, name, content):
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content)
    assert rows(tmp_path / name) == [(name, 1, {"text": "x"})]


def test_a_folder_is_its_direct_children_in_the_order_of_their_names(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", {"text": "2"})
    (tmp_path / "a.txt").write_text("1")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "c.txt").write_text("3")
    found = find_data_files(tmp_path)
    assert found.names == ("a.txt", "b.jsonl")
    assert found.skipped == ("README.md", "more")
    assert [row[2]["text"] for row in rows(tmp_path)] == ["1", "2"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', "broken JSON: Expecting ',' delimiter at column 13"),
        ("[1, 2]", "got a list of 2; need a JSON object"),
        ('"a"', 'got "a"; need a JSON object'),
        ("null", "got null; need a JSON object"),
        ('{"n": ' + "9" * 5000 + "}", "broken JSON: Exceeds the limit"),
        ("[" * 100_000, "broken JSON: maximum recursion depth exceeded"),
    ],
)
def test_a_line_that_is_no_json_object_is_malformed(tmp_path, line, message):
    path = write_jsonl(tmp_path / "r.jsonl", line)
    with pytest.raises(MalformedRow) as error:
        rows(path)
    assert str(error.value).startswith(message)


def test_what_is_not_utf_8_is_malformed_and_says_where(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo \xe9\n")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\xe9"}\n')
    with pytest.raises(
        MalformedRow, match=r"not UTF-8: byte 0xe9 in line 2; save the file as UTF-8"
    ):
        rows(tmp_path / "a.txt")
    with pytest.raises(MalformedRow, match=r"not UTF-8: byte 0xe9; save the file as UTF-8"):
        rows(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_an_empty_file_is_an_error(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=f"^{name}: the file is empty; need at least one row$"):
        rows(tmp_path / name)


def test_a_file_of_another_kind_is_an_error_that_names_the_known_ones(tmp_path):
    path = tmp_path / "a.docx"
    path.touch()
    with pytest.raises(DataError, match=r"^a\.docx: a \.docx file; need a \.jsonl, \.json, "):
        find_data_files(path)


def test_a_folder_without_data_is_an_error_that_names_what_it_holds(tmp_path):
    with pytest.raises(DataError, match="the folder is empty; need"):
        find_data_files(tmp_path)
    (tmp_path / "a.docx").touch()
    with pytest.raises(DataError, match=r"the folder holds a\.docx; need a \.jsonl"):
        find_data_files(tmp_path)


def test_a_file_that_the_system_does_not_open_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"gone\.txt: cannot be read: No such file"):
        list(read_rows([tmp_path / "gone.txt"]))
    with pytest.raises(DataError, match=r"gone\.txt: cannot be read: No such file"):
        fingerprint_files([tmp_path / "gone.txt"])


def test_a_path_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"^nowhere\.jsonl: no such file or folder; need a \.jsonl"):
        resolve_data_path("nowhere.jsonl", "sft", "train")
    with pytest.raises(DataError, match=r"^data\.path: none given"):
        resolve_data_path("", "sft", "train")


def test_tiny_is_the_shipped_file_of_stage_and_split():
    folder = shipped_folder("recipes") / "tiny" / "data"
    assert resolve_data_path("tiny", "sft", "test") == folder / "sft_test.jsonl"
    with pytest.raises(DataError, match=r"^tiny: no shipped train rows for cook"):
        resolve_data_path("tiny", "cook", "train")
