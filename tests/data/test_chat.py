"""Chats through templates as they are: what they leave out, rewrite, or take in other forms."""

import json

import pytest

from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.prompts import PromptEncoder, load_prompts
from rlhf_cli.data.records.fields import Message, parse_messages
from rlhf_cli.data.records.reader import RecordWithSource
from rlhf_cli.data.records.types import ChatRecord, PreferenceRecord, is_chat
from rlhf_cli.data.report import DataReport, MalformedRow, RefusedRow
from rlhf_cli.data.tokens.chat import ChatRenderer
from rlhf_cli.data.tokens.chat_template import turn_end
from rlhf_cli.data.tokens.record_tokenizer import RecordTokenizer
from tests.data.test_templates import family
from tests.data.toy import write_jsonl

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] or '' }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KNOWN_ROLES = (  # passes over what it does not know, as Zephyr's does
    "{% for m in messages %}{% if m['role'] in ('system', 'user', 'assistant') %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['reasoning_content'] %}<think>{{ m['reasoning_content'] }}</think>{% endif %}"
    "{{ m['content'] or '' }}"
    "{% for call in m['tool_calls'] or [] %}<call>{{ call['function'] | tojson }}</call>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NULL_CALLS = (  # a call is looked for only where there is no content
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is not defined %}{% for call in m['tool_calls'] %}"
    "<call>{{ call['function'] | tojson }}</call>{% endfor %}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HISTORY_WITHOUT_THOUGHTS = (  # as Qwen 3's
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set said = m['content'] %}"
    "{% if '</think>' in said and loop.index0 < ns.last %}"
    "{% set said = said.split('</think>')[-1] | trim %}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ said }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENED_THOUGHT = (  # as DeepSeek-R1's: thoughts are cut, and the prompt opens one
    "{% for m in messages %}{% set said = m['content'].split('</think>')[-1] %}"
    "<|im_start|>{{ m['role'] }}\n{{ said }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
RULE_IN_LAST_QUESTION = (  # as Mistral's v0.3
    "{% set rule = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "[{% if loop.last and rule %}{{ rule }}\n\n{% endif %}{{ m['content'] }}]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
)


def tokenizer_of(template):
    tokenizer = family("chatml")
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(autouse=True)
def _own_template():
    """Give the shared tokenizer its template back."""
    tokenizer = family("chatml")
    before = tokenizer.chat_template
    yield
    tokenizer.chat_template = before


def chat(*turns, **first):
    """A chat record, as from a file; keys of the first message."""
    listed = [{"role": role, "content": said, **more} for role, said, more in turns]
    listed[0] |= first
    return ChatRecord(parse_messages("messages", listed))


def say(role, content, **more):
    return role, content, more


def made(record, template, **settings):
    report = DataReport()
    record_tokenizer = RecordTokenizer(tokenizer_of(template), DataConfig(**settings), report)
    examples = list(record_tokenizer.examples(iter([RecordWithSource(record, "r.jsonl", 1)])))
    return [source.row for example in examples for source in example], report


def texts(record, template, **settings):
    """Trained text and whole text of the only row, and the report."""
    [row], report = made(record, template, **settings)
    tokenizer = family("chatml")
    return tokenizer.decode(row.tokens[row.loss_mask]), tokenizer.decode(row.tokens), report


def refusal(record, template, **settings):
    rows, report = made(record, template, **settings)
    assert rows == []
    [reason] = report.refused
    return reason


ANOTHER = "(give another chat template with model.chat_template=FILE)"


def test_a_message_that_the_template_passes_over_refuses_the_row():
    record = chat(
        say("user", "Rain?"), say("assistant", "Wait."), say("tool", "Rain at nine."),
        say("assistant", "Yes."),
    )  # fmt: skip
    reason = f"the chat template leaves out the tool's message {ANOTHER}"
    assert refusal(record, KNOWN_ROLES) == reason
    assert "Rain at nine." in texts(record, CHATML)[1]


def test_a_message_that_is_left_out_is_missed_also_where_its_text_stands_elsewhere():
    record = chat(
        say("user", "Is it nine?"), say("assistant", "Wait."), say("tool", "nine"),
        say("assistant", "Yes, nine."),
    )  # fmt: skip
    assert "leaves out the tool's message" in refusal(record, KNOWN_ROLES)


def test_a_prompt_that_the_template_leaves_out_a_part_of_is_refused():
    encoder = PromptEncoder(tokenizer_of(KNOWN_ROLES), as_message=True)
    with pytest.raises(RefusedRow, match="leaves out the tool's message"):
        encoder.encode((Message("user", "Rain?"), Message("tool", "Rain at nine.")))


@pytest.mark.parametrize("train_on", ["response", "last_turn", "all"])
def test_a_turn_of_weight_0_is_context_that_is_never_trained(train_on):
    record = chat(
        say("user", "Two and two?"), say("assistant", "Nineteen.", weight=0), say("user", "No."),
        say("assistant", "Four.", weight=1),
    )  # fmt: skip
    trained, whole, _ = texts(record, CHATML, train_on=train_on)
    assert "Nineteen." in whole
    assert "Nineteen." not in trained
    assert "Four.<|im_end|>" in trained


def test_without_a_turn_of_weight_1_there_is_nothing_to_train():
    record = chat(say("user", "Two?"), say("assistant", "Nineteen.", weight=0))
    assert refusal(record, CHATML) == "no assistant message of weight 1"


@pytest.mark.parametrize("weight", [0.5, True, "1"])
def test_a_weight_is_0_or_1(weight):
    with pytest.raises(MalformedRow, match=r"messages\[1\]\.weight: got .*; need 0 .* or 1"):
        chat(say("user", "Two?"), say("assistant", "Nineteen.", weight=weight))


def test_reasoning_in_a_key_of_its_own_is_given_to_the_template():
    record = chat(say("user", "Two?"), say("assistant", "Four.", reasoning_content="Two fingers."))
    assert texts(record, TOOLS)[0] == "<think>Two fingers.</think>Four.<|im_end|>"
    assert refusal(record, CHATML) == (
        f"the chat template leaves out the assistant's reasoning {ANOTHER}"
    )


CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"at": "Graz"}},
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Of a town."}}


@pytest.mark.parametrize("content", [None, "", "I look."])
@pytest.mark.parametrize("template", [TOOLS, NULL_CALLS])
def test_tool_calls_are_written_with_or_without_a_text_beside_them(content, template):
    record = chat(say("user", "Rain?"), say("assistant", content, tool_calls=[CALL]))
    if template == NULL_CALLS and content:
        assert "leaves out the assistant's tool calls" in refusal(record, template)
        return
    called = '{"name": "weather", "arguments": {"at": "Graz"}}'
    trained = texts(record, template)[0]
    assert trained == f"{content or ''}<call>{called}</call><|im_end|>"


def test_calls_that_the_template_does_not_write_refuse_the_row():
    record = chat(say("user", "Rain?"), say("assistant", "I look.", tool_calls=[CALL]))
    assert refusal(record, CHATML) == (
        f"the chat template leaves out the assistant's tool calls {ANOTHER}"
    )


def test_arguments_as_text_are_given_as_the_object_that_they_are():
    as_text = {"function": {"name": "weather", "arguments": json.dumps({"at": "Graz"})}}
    record = chat(say("user", "Rain?"), say("assistant", None, tool_calls=[as_text]))
    assert record.messages[1].extra["tool_calls"][0]["function"]["arguments"] == {"at": "Graz"}
    with pytest.raises(
        MalformedRow, match=r"tool_calls\[0\]\.function\.arguments: got .*; need JSON"
    ):
        chat(say("assistant", None, tool_calls=[{"function": {"name": "f", "arguments": "{"}}]))


@pytest.mark.parametrize("as_text", [True, False])
def test_the_tools_of_a_row_are_given_to_the_template(tmp_path, as_text):
    row = {
        "tools": json.dumps([TOOL]) if as_text else [TOOL, {**TOOL, "strict": None}][:1],
        "messages": [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "No."}],
    }
    report, row_texts = run_file(write_jsonl(tmp_path / "r.jsonl", row), TOOLS)
    assert json.dumps(TOOL) in row_texts[0]
    assert report.ignored_columns == []
    assert report.unwritten == []
    report, row_texts = run_file(write_jsonl(tmp_path / "r.jsonl", row), CHATML)
    assert report.unwritten == ["tools"]
    assert any("not written by the chat template: tools" in line for line in report.note_lines())


def run_file(path, template):
    """The report of a file of chats, and the text of each row."""
    from rlhf_cli.data.records.reader import RecordReader
    from rlhf_cli.data.sources.mixture import open_training_data

    cfg, report = DataConfig(path=str(path)), DataReport()
    mixture = open_training_data(cfg, "sft", 0)
    reader = RecordReader(cfg, "sft", (ChatRecord,), report)
    tokenizer = tokenizer_of(template)
    record_tokenizer = RecordTokenizer(tokenizer, cfg, report)
    examples = list(record_tokenizer.examples(reader.read(mixture.rows())))
    return report, [tokenizer.decode(source.row.tokens) for [source] in examples]


def test_keys_that_make_no_difference_are_named():
    turns = [say("user", "Rain?", id=1), say("assistant", "No.", mood="glad", name=None)]
    assert texts(chat(*turns), CHATML)[2].unwritten == ["id", "mood"]
    named = CHATML.replace("<|im_end|>", "{{ m['mood'] }}<|im_end|>")
    assert texts(chat(*turns), named)[2].unwritten == ["id"]


def test_a_template_of_parts_is_given_parts():
    record = chat(say("user", "Name a tea."), say("assistant", "Sencha."))
    trained, whole, _ = texts(record, PARTS)
    assert trained == "Sencha.<|im_end|>"
    assert whole == texts(record, CHATML)[1]


def test_parts_are_joined_for_a_template_of_text_and_other_kinds_are_refused():
    parts = [{"type": "text", "text": "Name "}, {"type": "text", "text": "a tea."}]
    record = chat(say("user", parts), say("assistant", "Sencha."))
    assert "Name a tea." in texts(record, CHATML)[1]
    with pytest.raises(MalformedRow, match="need a part of type text"):
        chat(say("user", [{"type": "image", "url": "x"}]), say("assistant", "Sencha."))


THINKING = (
    say("user", "Two and two?"), say("assistant", "<think>\nFingers.\n</think>\n\nFour."),
    say("user", "And one?"), say("assistant", "<think>\nOne on.\n</think>\n\nFive."),
)  # fmt: skip


def test_where_thoughts_leave_the_history_the_last_response_is_trained_with_its_own():
    trained, whole, report = texts(chat(*THINKING), HISTORY_WITHOUT_THOUGHTS)
    assert trained == "<think>\nOne on.\n</think>\n\nFive.<|im_end|>"
    assert "Fingers." not in whole
    [note] = report.notes
    assert note.startswith("only the last response is trained, because the chat template")
    assert "data.train_on=last_turn" in note
    assert report.unwritten == ["thoughts of earlier turns"]


def test_a_single_thinking_turn_is_trained_whole_and_without_a_note():
    trained, _, report = texts(chat(*THINKING[:2]), HISTORY_WITHOUT_THOUGHTS)
    assert trained == "<think>\nFingers.\n</think>\n\nFour.<|im_end|>"
    assert not report.notes


def test_a_response_follows_the_thought_that_the_prompt_opens():
    trained, whole, _ = texts(chat(*THINKING[:2]), OPENED_THOUGHT)
    assert trained == "Fingers.\n</think>\n\nFour.<|im_end|>"
    prompt = "<|im_start|>user\nTwo and two?<|im_end|><|im_start|>assistant\n<think>\n"
    assert whole == prompt + trained
    encoder = PromptEncoder(tokenizer_of(OPENED_THOUGHT), as_message=True)
    asked = encoder.encode((Message("user", "Two and two?"),))
    [row], _ = made(chat(*THINKING[:2]), OPENED_THOUGHT)
    assert row.tokens[: len(asked)].tolist() == asked


def test_a_response_that_goes_on_with_the_opened_thought_is_trained_as_it_stands():
    """As the model writes it: rows of `rlhf generate`, and those of servers, begin so."""
    written = chat(THINKING[0], say("assistant", "Fingers.\n</think>\n\nFour."))
    assert texts(written, OPENED_THOUGHT)[:2] == texts(chat(*THINKING[:2]), OPENED_THOUGHT)[:2]


def test_a_response_without_the_thought_that_the_prompt_opens_is_refused():
    asked = (Message("user", "Two and two?"),)
    answers = [(Message("assistant", said),) for said in ("<think>\nHm.\n</think>\nFour.", "Five.")]
    reason = refusal(PreferenceRecord(asked, *answers), OPENED_THOUGHT)
    assert reason == (
        "the chat template's generation prompt ends with <think>, with which the response does not "
        "begin (begin it so, or give another chat template with model.chat_template=FILE)"
    )


def test_a_rule_that_the_template_shows_with_the_question_alone_is_trained_with():
    record = chat(say("system", "In French."), say("user", "Hot?"), say("assistant", "Oui."))
    assert texts(record, RULE_IN_LAST_QUESTION)[:2] == (
        " Oui.<|im_end|>",
        "[In French.\n\nHot?] Oui.<|im_end|>",
    )
    two = chat(
        say("system", "In French."), say("user", "Hot?"), say("assistant", "Oui."),
        say("user", "Late?"), say("assistant", "Non."),
    )  # fmt: skip
    trained, whole, report = texts(two, RULE_IN_LAST_QUESTION)
    assert (trained, whole) == (
        " Non.<|im_end|>",
        "[Hot?] Oui.<|im_end|>[In French.\n\nLate?] Non.<|im_end|>",
    )
    [note] = report.notes
    assert "leaves out the system's message" in note


def test_a_user_who_quotes_a_special_token_closes_no_turn():
    quoted = "What is <|im_end|> and <|im_start|>?"
    record = chat(say("user", quoted), say("assistant", "It ends: <|im_end|>. So."))
    [row], _ = made(record, CHATML)
    tokenizer = family("chatml")
    whole = tokenizer.decode(row.tokens)
    assert quoted in whole
    ends = [tokenizer.convert_ids_to_tokens(int(t)) for t in row.tokens].count("<|im_end|>")
    assert ends == 2  # one a turn, written by the template
    asked = PromptEncoder(tokenizer, as_message=True).encode(quoted)
    assert row.tokens[: len(asked)].tolist() == asked
    assert tokenizer.decode(row.tokens[row.loss_mask]) == "It ends: <|im_end|>. So.<|im_end|>"


def test_a_response_that_brings_its_end_token_has_it_once():
    with_end = chat(say("user", "Two?"), say("assistant", "Four.<|im_end|>"))
    without = chat(say("user", "Two?"), say("assistant", "Four."))
    [one], _ = made(with_end, CHATML)
    [other], _ = made(without, CHATML)
    assert one.tokens.tolist() == other.tokens.tolist()
    assert one.loss_mask.tolist() == other.loss_mask.tolist()


def test_an_added_token_that_is_not_special_is_an_answer():
    from transformers import AddedToken

    tokenizer = tokenizer_of(CHATML)
    tokenizer.add_tokens([AddedToken("<safe>", special=False, normalized=False)])
    [row], _ = made(chat(say("user", "Two?"), say("assistant", "<safe>")), CHATML)
    assert tokenizer.convert_ids_to_tokens(row.tokens[row.loss_mask]) == ["<safe>", "<|im_end|>"]
    # a template without an end of turn: the answer's own token is none
    open_end = CHATML.replace("<|im_end|>", "")
    [row], _ = made(chat(say("user", "Two?"), say("assistant", "<safe>")), open_end)
    assert tokenizer.convert_ids_to_tokens(row.tokens[-1:]) == ["<|endoftext|>"]


@pytest.mark.parametrize(
    ("name", "end"),
    [("chatml", "<|im_end|>"), ("llama3", "<|eot_id|>"), ("phi3", "<|end|>"), ("zephyr", "</s>")],
)
def test_the_end_of_a_turn_is_that_of_the_template(name, end):
    tokenizer = family(name)
    assert turn_end(tokenizer) == tokenizer.convert_tokens_to_ids(end)


def test_a_template_without_an_end_of_turn_has_none():
    assert turn_end(tokenizer_of(CHATML.replace("<|im_end|>", ""))) is None


def test_prompts_that_the_template_refuses_are_counted_by_file_and_line(tmp_path, capsys):
    from rlhf_cli.data.prompts import encode_every_prompt
    from rlhf_cli.errors import DataError

    good = [{"role": "user", "content": "Rain?"}]
    bad = [*good, {"role": "tool", "content": "At nine."}]
    file = write_jsonl(tmp_path / "p.jsonl", {"prompt": good}, {"prompt": bad}, {"prompt": good})
    encoder = PromptEncoder(tokenizer_of(KNOWN_ROLES), as_message=True)
    kept, tokens = encode_every_prompt(load_prompts(str(file)), encoder)
    assert len(kept) == len(tokens) == 2
    assert kept.locations == ["p.jsonl:1", "p.jsonl:3"]
    assert "refused: 1 row, the chat template leaves out the tool's message" in (
        capsys.readouterr().err
    )
    only = load_prompts(str(write_jsonl(tmp_path / "q.jsonl", {"prompt": bad})))
    with pytest.raises(DataError, match=r"the first is q\.jsonl:1"):
        encode_every_prompt(only, encoder)


def test_messages_come_out_as_they_came_in():
    raw = [
        {"role": "user", "content": "Rain?", "tools": [TOOL]},
        {"role": "assistant", "content": "Hm.", "tool_calls": [CALL], "weight": 0},
    ]
    read = parse_messages("messages", raw)
    assert [message.to_dict() for message in read] == raw
    assert is_chat(ChatRecord(read))


def test_the_mark_that_breaks_tokens_is_no_text():
    with pytest.raises(MalformedRow, match=r"got U\+FDD0, which is no character of Unicode"):
        chat(say("user", "a\ufdd0b"), say("assistant", "c"))


def test_the_renderer_reads_a_template_once():
    renderer = ChatRenderer(tokenizer_of(CHATML))
    segments = renderer.render_prompt((Message("user", "Rain?"),))
    assert "".join(segment.text for segment in segments).endswith("<|im_start|>assistant\n")
