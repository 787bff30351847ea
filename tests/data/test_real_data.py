"""The public data of docs/data.md, as far as they are here."""

import json

import pytest

from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.dataset import load_examples
from rlhf_cli.data.records.reader import RecordReader
from rlhf_cli.data.records.types import KINDS, ChatRecord, PromptCompletionRecord, TextRecord
from rlhf_cli.data.report import DataReport
from rlhf_cli.data.sources.files import find_data_files, read_rows
from tests.data.toy import byte_tokenizer, toy_tokenizer

ANY = tuple(kind.record for kind in KINDS)
MATH = {"prompt": "question", "completion": "solution"}


@pytest.mark.parametrize(
    ("name", "kind", "columns"),
    [
        ("text_speeches.txt", "text", {}),
        ("text_movie_reviews.jsonl", "text", {}),
        ("sft_questions_train.jsonl", "prompt_completion", {}),
        ("messy_sft.jsonl", "prompt_completion", {}),
        ("math_test.jsonl", "prompt_completion", MATH),
        ("chat_assistant_test.jsonl", "chat", {}),
        ("preference_helpful_test.jsonl", "preference", {}),
        ("preference_arguments_test.jsonl", "preference", {}),
        ("preference_raw_transcripts.jsonl", "preference", {}),
        ("messy_transcripts.jsonl", "preference", {}),
        ("ranked_arguments.jsonl", "ranked", {}),
        ("ranked_answers.jsonl", "ranked", {}),
        ("binary_math_test.jsonl", "labelled", {}),
        ("messy_binary.jsonl", "labelled", {}),
        ("prompts_assistant.jsonl", "prompt", {}),
        ("prompts_movie.jsonl", "prompt", {}),
    ],
)
def test_every_row_is_read_or_refused_for_its_reason(real_data, name, kind, columns):
    report = DataReport()
    reader = RecordReader(DataConfig(columns=columns), "test", ANY, report)
    found = list(reader.read(read_rows(find_data_files(real_data / name).files)))
    assert (report.kind, report.malformed) == (kind, 0)
    tied = [refusal.rows for refusal in report.refused.values()]  # rankings without an order
    assert len(found) + sum(tied) == report.rows
    assert list(report.refused) in ([], ["all scores are equal"])


def test_transcripts_that_part_before_their_last_turn_join_to_what_they_were(real_data):
    file = real_data / "messy_transcripts.jsonl"
    report = DataReport()
    found = list(RecordReader(DataConfig(), "test", ANY, report).read(read_rows([file])))
    rows = [json.loads(line) for line in file.read_bytes().splitlines()]
    for read, row in zip(found, rows, strict=True):
        record = read.record
        assert record.prompt.endswith("\n\nAssistant:")
        for name in ("chosen", "rejected"):
            response = getattr(record, name)
            assert row[name].startswith(record.prompt + response)
            cut = row[name].removeprefix(record.prompt + response)
            assert cut == "" or cut.startswith("\n\nHuman:")
    assert sum(note.rows for note in report.notes.values()) >= 10


@pytest.mark.parametrize(
    ("name", "rows", "read", "refused"),
    [
        (
            "messy_preference.jsonl",
            *(45, 30, {"empty response": 3, "chosen equals rejected": 12}),
        ),
        ("messy_transcripts.jsonl", 10, 10, {}),
        ("messy_sft.jsonl", 39, 39, {}),
        ("messy_binary.jsonl", 6, 6, {}),
        ("preference_raw_transcripts.jsonl", 160, 160, {}),
    ],
)
def test_messy_rows_are_counted_exactly(real_data, name, rows, read, refused):
    report = DataReport()
    reader = RecordReader(DataConfig(), "test", ANY, report)
    found = list(reader.read(read_rows([real_data / name])))
    assert (report.rows, len(found), report.malformed) == (rows, read, 0)
    assert {reason: refusal.rows for reason, refusal in report.refused.items()} == refused


def test_raw_transcripts_are_split_at_the_last_turn_of_the_assistant(real_data):
    file = real_data / "preference_raw_transcripts.jsonl"
    found = RecordReader(DataConfig(), "test", ANY, DataReport()).read(read_rows([file]))
    lines = file.read_text(encoding="utf-8").splitlines()
    for read, line in zip(found, lines, strict=True):
        record, row = read.record, json.loads(line)
        assert (record.prompt + record.chosen, record.prompt + record.rejected) == (
            row["chosen"],
            row["rejected"],
        )
        assert record.prompt.endswith("\n\nAssistant:")
        assert "\n\nAssistant:" not in record.chosen + record.rejected


def test_the_tokens_that_messy_rows_lose_are_counted(real_data):
    cfg = DataConfig(path=str(real_data / "messy_sft.jsonl"), max_length=512)
    _, report = load_examples(cfg, "sft", byte_tokenizer(), (PromptCompletionRecord, ChatRecord))
    lines = (real_data / "messy_sft.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    written = sum(len((row["prompt"] + row["completion"]).encode()) + 1 for row in rows)
    lost = sum(cuts.tokens for cuts in report.cut.values())
    assert (report.rows, report.kept, report.tokens + lost) == (39, 39, written)


def test_messy_preferences_are_refused_by_what_ails_them(real_data):
    file = real_data / "messy_preference.jsonl"
    kinds = [json.loads(line)["kind"] for line in file.read_text(encoding="utf-8").splitlines()]
    report = DataReport()
    list(RecordReader(DataConfig(), "test", ANY, report).read(read_rows([file])))
    assert {reason: found.rows for reason, found in report.refused.items()} == {
        "empty response": kinds.count("an empty response"),
        "chosen equals rejected": kinds.count("chosen equals rejected"),
    }


def test_a_corpus_loses_no_token(real_data):
    cfg = DataConfig(path=str(real_data / "text_speeches.txt"), packing=True, max_length=256)
    tokenizer = toy_tokenizer()
    examples, report = load_examples(cfg, "pretrain", tokenizer, (TextRecord,))
    text = (real_data / "text_speeches.txt").read_text(encoding="utf-8")
    ids = [*tokenizer(text, verbose=False)["input_ids"], tokenizer.eos_token_id]
    assert examples.tokens[examples.loss_mask].tolist() == ids
    assert report.trained_tokens == len(ids)


def test_every_reply_of_a_chat_is_trained(real_data):
    file = real_data / "chat_coffee_test.jsonl"
    cfg = DataConfig(path=str(file))
    tokenizer = toy_tokenizer()
    examples, _ = load_examples(cfg, "sft", tokenizer, (PromptCompletionRecord, ChatRecord))
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    replies = [m["content"] for row in rows for m in row["messages"] if m["role"] == "assistant"]
    expected = [tokenizer(f"{reply}<turn>")["input_ids"] for reply in replies]
    assert examples.tokens[examples.loss_mask].tolist() == [i for ids in expected for i in ids]
