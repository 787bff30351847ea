import pytest

from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.records.reader import RecordReader
from rlhf_cli.data.records.types import ChatRecord, PromptCompletionRecord, TextRecord
from rlhf_cli.data.report import DataReport
from rlhf_cli.data.sources.files import find_data_files, read_rows
from rlhf_cli.errors import ConfigError, DataError
from tests.data.toy import turns, write_jsonl

SFT = (PromptCompletionRecord, ChatRecord)
GOOD = {"prompt": "p", "completion": "c"}


def read(path, *, stage="sft", allowed=SFT, **settings):
    report = DataReport(files=(path.name,))
    reader = RecordReader(DataConfig(**settings), stage, allowed, report)
    return list(reader.read(read_rows(find_data_files(path).files))), report


def test_records_know_where_they_stand_and_other_columns_are_named_once(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", {**GOOD, "id": 1}, "", {**GOOD, "id": 2, "kind": "x"})
    found, report = read(path)
    assert [(item.record, item.location) for item in found] == [
        (PromptCompletionRecord("p", "c"), "r.jsonl:1"),
        (PromptCompletionRecord("p", "c"), "r.jsonl:3"),
    ]
    assert (report.rows, report.kind) == (2, "prompt_completion")
    assert report.ignored_columns == ["id", "kind"]


def test_columns_are_read_under_the_names_of_the_file(tmp_path):
    row = {"question": "q", "prompt": "other", "solution": "s"}
    path = write_jsonl(tmp_path / "r.jsonl", row, {"solution": "s"})
    columns = {"prompt": "question", "completion": "solution"}
    found, report = read(path, columns=columns, max_bad_rows=1)
    assert [item.record for item in found] == [PromptCompletionRecord("q", "s")]
    assert report.ignored_columns == ["prompt"]
    assert report.malformed_shown == [
        "r.jsonl:2: no column question (data.columns); found solution"
    ]


def test_an_unknown_column_of_ours_is_a_config_error(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", GOOD)
    with pytest.raises(ConfigError, match=r"^data\.columns\.promt: no such column; need one of "):
        read(path, columns={"promt": "question"})


def test_a_malformed_row_stops_the_run_with_its_line(tmp_path):
    path = write_jsonl(tmp_path / "pairs.jsonl", GOOD, '{"prompt": ', {**GOOD, "prompt": None})
    with pytest.raises(DataError) as error:
        read(path)
    assert str(error.value).splitlines() == [
        "2 malformed of 3 rows; repair them, or leave them out with data.max_bad_rows=2",
        "  pairs.jsonl:2: broken JSON: Expecting value at column 12",
        "  pairs.jsonl:3: no column prompt; found completion; null: prompt. See rlhf docs data",
    ]


def test_malformed_rows_are_tolerated_up_to_max_bad_rows(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", *["{"] * 8, GOOD)
    found, report = read(path, max_bad_rows=8)
    assert [item.line for item in found] == [9]
    assert (report.malformed, len(report.malformed_shown)) == (8, 5)
    with pytest.raises(DataError, match=r"^8 malformed of 9 rows[\s\S]*\n  and 3 more$"):
        read(path, max_bad_rows=7)


def test_a_row_of_another_kind_than_the_first_is_malformed(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", GOOD, {"messages": turns("q", "r")})
    with pytest.raises(
        DataError, match=r"r\.jsonl:2: no column prompt, completion; found messages"
    ):
        read(path)


@pytest.mark.parametrize(
    ("row", "stage", "allowed", "message"),
    [
        (
            {"prompt": "p", "chosen": "c", "rejected": "r"},
            "sft",
            SFT,
            "r.jsonl has preference rows (prompt, chosen, rejected); sft takes prompt_completion "
            "rows (prompt, completion) or chat rows (messages). See rlhf docs data",
        ),
        (
            {"messages": turns("q", "r")},
            "pretrain",
            (TextRecord,),
            "r.jsonl has chat rows (messages); pretrain takes text rows (text). See rlhf docs data",
        ),
        (
            {**GOOD, "label": True},
            "sft",
            SFT,
            "r.jsonl has labelled rows (prompt, completion, label); sft takes prompt_completion "
            "rows (prompt, completion) or chat rows (messages). Try data.format=prompt_completion "
            "to read the rows as such. See rlhf docs data",
        ),
        (
            {"question": "q", "answer": "a"},
            "sft",
            SFT,
            "r.jsonl:1: no known columns in ['question', 'answer']; sft takes prompt_completion "
            "rows (prompt, completion) or chat rows (messages). Name them, as in "
            "data.columns={prompt: question}. See rlhf docs data",
        ),
    ],
)
def test_rows_that_the_stage_does_not_take(tmp_path, row, stage, allowed, message):
    path = write_jsonl(tmp_path / "r.jsonl", row)
    with pytest.raises(DataError) as error:
        read(path, stage=stage, allowed=allowed)
    assert str(error.value) == message


def test_the_kind_can_be_forced(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", {**GOOD, "label": False})
    found, report = read(path, format="prompt_completion")
    assert [item.record for item in found] == [PromptCompletionRecord("p", "c")]
    assert report.ignored_columns == ["label"]
    with pytest.raises(DataError, match=r"^data\.format: got text; sft takes prompt_completion"):
        read(path, format="text")


def test_where_a_row_can_be_two_kinds_the_stage_decides(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", {"messages": turns("q", "r"), "text": "t"})
    assert read(path)[1].kind == "chat"
    assert read(path, stage="pretrain", allowed=(TextRecord,))[1].kind == "text"
