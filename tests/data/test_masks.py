"""Which tokens a row has and which of them are trained, id by id."""

import pytest

from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.prompts import PromptEncoder
from rlhf_cli.data.records import fields
from rlhf_cli.data.records.reader import RecordWithSource
from rlhf_cli.data.records.types import ChatRecord, PromptCompletionRecord, TextRecord
from rlhf_cli.data.report import DataReport
from rlhf_cli.data.tokens.record_tokenizer import RecordTokenizer
from rlhf_cli.errors import ModelError
from tests.data.toy import (
    ASSISTANT,
    BOS,
    EOS,
    NEWLINE,
    SPACE,
    TURN,
    USER,
    A,
    B,
    C,
    D,
    E,
    toy_tokenizer,
)
from tests.data.toy import turns as raw_turns


def turns(*said):
    return fields.parse_messages("messages", raw_turns(*said))


def made(record, tokenizer=None, **settings):
    report = DataReport()
    record_tokenizer = RecordTokenizer(tokenizer or toy_tokenizer(), DataConfig(**settings), report)
    examples = list(record_tokenizer.examples(iter([RecordWithSource(record, "r.jsonl", 1)])))
    return [source.row for example in examples for source in example], report


def row(record, tokenizer=None, **settings):
    """The only row's tokens, and the indices of the trained ones."""
    rows, report = made(record, tokenizer, **settings)
    assert report.refused == {}
    assert len(rows) == 1
    return rows[0].tokens.tolist(), rows[0].loss_mask.nonzero()[0].tolist()


def refusal(record, tokenizer=None, **settings):
    rows, report = made(record, tokenizer, **settings)
    assert rows == []
    (reason,) = report.refused
    assert report.refused[reason].example == "r.jsonl:1"
    return reason


def test_the_response_and_its_end_are_trained():
    record = PromptCompletionRecord("ab", "cd")
    assert row(record) == ([A, B, C, D, EOS], [2, 3, 4])


def test_a_tokenizer_that_adds_bos_adds_it_once_in_front():
    record = PromptCompletionRecord("ab", "cd")
    assert row(record, toy_tokenizer(adds_bos=True)) == ([BOS, A, B, C, D, EOS], [3, 4, 5])


def test_a_text_that_brings_its_bos_gets_no_second_one():
    record = PromptCompletionRecord("<bos>ab", "cd")
    assert row(record, toy_tokenizer(adds_bos=True)) == ([BOS, A, B, C, D, EOS], [3, 4, 5])
    encoder = PromptEncoder(toy_tokenizer(adds_bos=True), as_message=False)
    assert encoder.encode("<bos>ab") == encoder.encode("ab") == [BOS, A, B]
    assert encoder.encode("") == [BOS]


def test_strings_are_joined_as_they_stand():
    record = PromptCompletionRecord("a ", "\nc")
    assert row(record) == ([A, SPACE, NEWLINE, C, EOS], [2, 3, 4])


def test_of_a_text_with_several_turns_the_assistants_are_trained():
    marks = toy_tokenizer()
    human, assistant = (marks(text)["input_ids"] for text in ("\n\nHuman:", "\n\nAssistant:"))
    record = PromptCompletionRecord("\n\nHuman:a\n\nAssistant:", "b\n\nHuman:c\n\nAssistant:d")
    prompt = [*human, A, *assistant]
    between = [*human, C, *assistant]
    ends = len(prompt), len(prompt) + len(between) + 1
    assert row(record) == ([*prompt, B, *between, D, EOS], [ends[0], ends[1], ends[1] + 1])


def test_a_mark_in_text_that_is_no_transcript_is_trained():
    rows, _ = made(PromptCompletionRecord("a", "b\n\nHuman:c"))
    assert rows[0].loss_mask.tolist() == [False] + [True] * (len(rows[0].tokens) - 1)


def test_an_end_token_in_the_text_is_not_doubled():
    record = PromptCompletionRecord("a", "c<eos>")
    assert row(record) == ([A, C, EOS], [1, 2])


def test_a_tokenizer_that_adds_its_end_token_does_not_double_it():
    from tokenizers import processors

    tokenizer = toy_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    record = PromptCompletionRecord("a", "c")
    assert row(record, tokenizer) == ([BOS, A, C, EOS], [2, 3])


@pytest.mark.parametrize(
    ("changes", "first"), [({}, BOS), ({"adds_bos": True}, BOS), ({"bos_token": None}, EOS)]
)
def test_without_a_prompt_a_response_begins_as_a_document_does(changes, first):
    tokenizer = toy_tokenizer(**changes)
    assert row(PromptCompletionRecord("", "cd"), tokenizer) == ([first, C, D, EOS], [1, 2, 3])


def test_train_on_all_trains_every_token_but_the_first():
    record = PromptCompletionRecord("ab", "cd")
    assert row(record, train_on="all") == ([A, B, C, D, EOS], [1, 2, 3, 4])


CHAT = ChatRecord(turns("a", "bc", "d", "e"))
CHAT_IDS = [
    *[USER, A, TURN, NEWLINE, ASSISTANT, B, C, TURN, NEWLINE],
    *[USER, D, TURN, NEWLINE, ASSISTANT, E, TURN, NEWLINE],
]


def test_every_reply_and_its_turn_end_are_trained_but_no_white_space_after_it():
    assert row(CHAT) == (CHAT_IDS, [5, 6, 7, 14, 15])


def test_last_turn_trains_the_last_reply():
    assert row(CHAT, train_on="last_turn") == (CHAT_IDS, [14, 15])


def test_all_trains_the_whole_chat():
    assert row(CHAT, train_on="all") == (CHAT_IDS, list(range(1, 17)))


def test_replies_in_the_prompt_of_a_completion_are_not_trained():
    messages = CHAT.messages
    assert row(PromptCompletionRecord(messages[:3], messages[3:])) == (CHAT_IDS, [14, 15])


def test_a_chat_may_end_with_the_user():
    record = ChatRecord(turns("a", "b", "c"))
    ids = [USER, A, TURN, NEWLINE, ASSISTANT, B, TURN, NEWLINE, USER, C, TURN, NEWLINE]
    assert row(record) == (ids, [5, 6])


def test_white_space_of_the_reply_itself_is_trained():
    record = ChatRecord(turns("a", " b "))
    ids = [USER, A, TURN, NEWLINE, ASSISTANT, SPACE, B, SPACE, TURN, NEWLINE]
    assert row(record) == (ids, [5, 6, 7, 8])


def test_bos_of_a_template_is_not_added_twice():
    template = "<bos>" + toy_tokenizer().chat_template
    tokenizer = toy_tokenizer(template, adds_bos=True)
    ids = [BOS, USER, A, TURN, NEWLINE, ASSISTANT, B, TURN, NEWLINE]
    assert row(ChatRecord(turns("a", "b")), tokenizer) == (ids, [6, 7])


def test_a_template_that_does_not_end_turns_gets_the_end_token():
    template = (
        "{% for m in messages %}{{ m['role'][0] }} {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}a {% endif %}"
    )
    tokenizer = toy_tokenizer(template)
    u = A + 20
    ids = [u, SPACE, B, NEWLINE, A, SPACE, C, NEWLINE, EOS]
    assert row(ChatRecord(turns("b", "c")), tokenizer) == (ids, [6, 7, 8])


def test_a_template_with_another_generation_prompt_is_refused():
    template = toy_tokenizer().chat_template.replace("<assistant>{% endif", "<user>{% endif")
    reason = refusal(CHAT, toy_tokenizer(template))
    assert reason == (
        "the chat template's generation prompt is not how it begins an assistant's turn "
        "(give another chat template with model.chat_template=FILE)"
    )


def test_of_a_template_that_rewrites_earlier_turns_the_last_is_trained_and_the_rest_noted():
    last = "{% if loop.last and m['role'] == 'assistant' %}e{% endif %}"
    template = (
        "{% for m in messages %}<{{ m['role'] }}>" + last + "{{ m['content'] }}<turn>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer = toy_tokenizer(template)
    for train_on, noted in (("last_turn", 0), ("response", 1)):
        [found], report = made(CHAT, tokenizer, train_on=train_on)
        assert found.tokens[found.loss_mask].tolist() == [E, E, TURN]
        assert len(report.notes) == noted
    [note] = report.notes
    assert note == (
        "only the last response is trained, because the chat template writes a turn otherwise once "
        "others follow it (to train them all, give another chat template with "
        "model.chat_template=FILE; data.train_on=last_turn asks for the last alone)"
    )
    assert report.notes[note].example == "r.jsonl:1"


def test_what_a_template_says_against_a_chat_is_the_reason():
    template = "{{ raise_exception('roles must alternate') }}"
    reason = refusal(CHAT, toy_tokenizer(template))
    assert reason == "the chat template fails: roles must alternate"


def test_a_chat_needs_a_template():
    with pytest.raises(ModelError, match=r"no chat template; give one with model\.chat_template="):
        made(CHAT, toy_tokenizer(None))
    assert row(PromptCompletionRecord("a", "b"), toy_tokenizer(None)) == ([A, B, EOS], [1, 2])


def test_a_tokenizer_without_end_token_is_refused():
    with pytest.raises(ModelError, match=r"no end-of-sequence token.*set eos_token in its"):
        made(CHAT, toy_tokenizer(eos_token=None))


def test_a_document_is_predicted_from_bos_to_its_end():
    assert row(TextRecord("ab"), train_on="all") == ([BOS, A, B, EOS], [1, 2, 3])


def test_a_document_begins_with_the_end_token_where_there_is_no_bos():
    tokenizer = toy_tokenizer(bos_token=None)
    assert row(TextRecord("ab"), tokenizer) == ([EOS, A, B, EOS], [1, 2, 3])


def test_a_text_that_the_tokenizer_drops_is_refused():
    from tokenizers import normalizers

    tokenizer = toy_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("a", "")
    assert refusal(TextRecord("aaa"), tokenizer) == "no token of a response"
    assert refusal(PromptCompletionRecord("b", "aa"), tokenizer) == "no token of a response"


LONG = PromptCompletionRecord("abc", "dddd")  # 8 tokens with the end


@pytest.mark.parametrize(
    ("policy", "max_length", "bos", "ids", "trained", "cut"),
    [
        ("prompt_start", 8, False, [A, B, C, D, D, D, D, EOS], [3, 4, 5, 6, 7], {}),
        ("prompt_start", 7, False, [B, C, D, D, D, D, EOS], [2, 3, 4, 5, 6], {"prompt start": 1}),
        ("prompt_start", 6, False, [C, D, D, D, D, EOS], [1, 2, 3, 4, 5], {"prompt start": 2}),
        (
            *("prompt_start", 4, False, [C, D, D, D], [1, 2, 3]),
            {"prompt start": 2, "response end": 2},
        ),
        ("prompt_start", 7, True, [BOS, C, D, D, D, D, EOS], [2, 3, 4, 5, 6], {"prompt start": 2}),
        (
            *("prompt_start", 3, True, [BOS, D, D], [1, 2]),
            {"prompt start": 3, "response end": 3},
        ),
        ("response_end", 5, False, [A, B, C, D, D], [3, 4], {"response end": 3}),
        ("response_end", 5, True, [BOS, A, B, C, D], [4], {"response end": 4}),
    ],
)
def test_truncation(policy, max_length, bos, ids, trained, cut):
    rows, report = made(LONG, toy_tokenizer(adds_bos=bos), max_length=max_length, truncation=policy)
    assert (rows[0].tokens.tolist(), rows[0].loss_mask.nonzero()[0].tolist()) == (ids, trained)
    assert {end: (cuts.rows, cuts.tokens) for end, cuts in report.cut.items()} == {
        end: (1, tokens) for end, tokens in cut.items()
    }


def test_a_row_that_loses_its_whole_response_is_refused():
    reason = refusal(LONG, max_length=3, truncation="response_end")
    assert reason == "no response within data.max_length=3 tokens"


def test_refuse_leaves_long_rows_out():
    reason = refusal(LONG, max_length=7, truncation="refuse")
    assert reason == "longer than data.max_length=7 (data.truncation=refuse)"
    assert row(LONG, max_length=8, truncation="refuse")[0][-1] == EOS


def test_a_long_chat_keeps_its_last_turns():
    # USER D TURN NEWLINE ASSISTANT | E TURN NEWLINE: the trailing white space counts as response
    assert row(CHAT, max_length=8) == (CHAT_IDS[-8:], [5, 6])


def test_a_byte_level_space_at_the_edge_of_a_reply_is_on_the_right_side():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    rules = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.post_processor = processors.ByteLevel(trim_offsets=True)
    rules.decoder = decoders.ByteLevel()
    template = (
        "{% for m in messages %}{{ m['role'][0] }}: {{ m['content'] }}<e>{% endfor %}"
        "{% if add_generation_prompt %}a: {% endif %}"
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rules, eos_token="<e>")
    tokenizer.chat_template = template
    for reply in ("é ", "x  ", "  x", "日本"):
        ids, trained = row(ChatRecord(turns("q ", reply)), tokenizer)
        assert tokenizer.decode([ids[i] for i in trained]) == f"{reply}<e>"
