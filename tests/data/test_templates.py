"""The templates of well-known model families: what is trained, as text, and the prompt's tokens."""

from functools import cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.prompts import PromptEncoder
from rlhf_cli.data.records.fields import Message
from rlhf_cli.data.records.reader import RecordWithSource
from rlhf_cli.data.records.types import ChatRecord
from rlhf_cli.data.report import DataReport
from rlhf_cli.data.tokens.record_tokenizer import RecordTokenizer

FOLDER = Path(__file__).parent / "templates"

# family -> bos, eos, further special tokens
SPECIAL = {
    "llama3": (
        "<|begin_of_text|>",
        "<|eot_id|>",
        ["<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"],
    ),
    "chatml": (None, "<|endoftext|>", ["<|im_start|>", "<|im_end|>"]),
    "mistral": ("<s>", "</s>", ["[INST]", "[/INST]"]),
    "gemma": ("<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"]),
    "zephyr": ("<s>", "</s>", []),  # its role marks are plain text
    "phi3": ("<s>", "<|endoftext|>", ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]),
}
# what ends a turn, and what the template puts in front of a response
ENDS = {
    "llama3": ("", "<|eot_id|>"),
    "chatml": ("", "<|im_end|>"),
    "mistral": (" ", "</s>"),
    "gemma": ("", "<end_of_turn>"),
    "zephyr": ("", "</s>"),
    "phi3": ("", "<|end|>"),
}
CHAT = (
    Message("user", "Hi there."),
    Message("assistant", "Hello, what now?"),
    Message("user", "Nothing."),
    Message("assistant", "\n\nGood bye"),
)


@cache
def family(name):
    """A byte-level BPE with the family's special tokens and template."""
    bos, eos, others = SPECIAL[name]
    rules = Tokenizer(models.BPE())
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    text = [f"{m.content}\n{m.content}\n\n<|assistant|>\n <|user|>\n" for m in CHAT] * 9
    rules.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=[token for token in (bos, eos, *others) if token],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rules, bos_token=bos, eos_token=eos, additional_special_tokens=others
    )
    tokenizer.chat_template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    return tokenizer


def made(messages, tokenizer, **settings):
    report = DataReport()
    record_tokenizer = RecordTokenizer(tokenizer, DataConfig(**settings), report)
    record = RecordWithSource(ChatRecord(messages), "r.jsonl", 1)
    return [
        row.row for example in record_tokenizer.examples(iter([record])) for row in example
    ], report


def row(messages, tokenizer, **settings):
    [found], report = made(messages, tokenizer, **settings)
    assert report.refused == {}
    return found


def trained_texts(found, tokenizer):
    """Each run of trained tokens as text."""
    runs, before = [], False
    for token, trained in zip(found.tokens.tolist(), found.loss_mask.tolist(), strict=True):
        if trained and not before:
            runs.append([])
        if trained:
            runs[-1].append(token)
        before = trained
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("name", SPECIAL)
def test_every_response_and_its_end_are_trained_and_nothing_else(name):
    tokenizer = family(name)
    front, end = ENDS[name]
    said = [m.content for m in CHAT if m.role == "assistant"]
    if name in ("llama3", "gemma"):  # these strip what is said
        said = [content.strip() for content in said]
    expected = [f"{front}{content}{end}" for content in said]
    assert trained_texts(row(CHAT, tokenizer), tokenizer) == expected
    assert trained_texts(row(CHAT, tokenizer, train_on="last_turn"), tokenizer) == expected[1:]


@pytest.mark.parametrize("name", SPECIAL)
def test_the_row_is_the_text_of_the_template(name):
    tokenizer = family(name)
    raw = [{"role": m.role, "content": m.content} for m in CHAT]
    text = tokenizer.apply_chat_template(raw, tokenize=False)
    assert tokenizer.decode(row(CHAT, tokenizer).tokens.tolist()) == text


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("turn", [1, 3])
def test_the_tokens_before_a_response_are_those_of_its_prompt(name, turn):
    tokenizer = family(name)
    encoder = PromptEncoder(tokenizer, as_message=True)
    prompt = encoder.encode(CHAT[:turn])
    found = row(CHAT, tokenizer)
    assert found.tokens[: len(prompt)].tolist() == prompt
    assert found.loss_mask[len(prompt)]
    assert not found.loss_mask[len(prompt) - 1]


def test_without_a_cut_the_line_ends_of_prompt_and_response_would_be_one_token():
    """So the test above can fail: one token over the border is what a whole text gives."""
    tokenizer = family("zephyr")
    raw = [{"role": m.role, "content": m.content} for m in CHAT]
    whole = tokenizer.apply_chat_template(raw, tokenize=False)
    assert tokenizer(whole)["input_ids"] != row(CHAT, tokenizer).tokens.tolist()


@pytest.mark.parametrize("name", ["gemma", "mistral"])
@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ((Message("system", "Be kind."), *CHAT), "System role not supported"),
        ((CHAT[0], *CHAT), "Conversation roles must alternate user/assistant/user/assistant/..."),
    ],
)
def test_a_chat_that_the_template_does_not_take_is_refused_and_counted(name, messages, what):
    rows, report = made(messages, family(name))
    assert rows == []
    assert {r: found.rows for r, found in report.refused.items()} == {
        f"the chat template fails: {what}": 1
    }


@pytest.mark.parametrize("name", ["llama3", "chatml", "zephyr", "phi3"])
def test_a_system_message_and_two_user_turns_in_a_row_are_context(name):
    tokenizer = family(name)
    found = row((Message("system", "Be kind."), CHAT[0], *CHAT), tokenizer)
    assert trained_texts(found, tokenizer) == trained_texts(row(CHAT, tokenizer), tokenizer)
    assert "Be kind." in tokenizer.decode(found.tokens.tolist())


def test_a_chat_that_begins_with_the_assistant_is_refused_unless_that_turn_is_only_context():
    tokenizer = family("chatml")
    _, report = made(CHAT[1:], tokenizer)
    assert list(report.refused) == [
        "the chat begins with the assistant, so its first turn has no prompt"
    ]
    found = row(CHAT[1:], tokenizer, train_on="last_turn")
    assert trained_texts(found, tokenizer) == ["\n\nGood bye<|im_end|>"]


def test_two_replies_in_a_row_are_both_trained():
    tokenizer = family("chatml")
    found = row((*CHAT, Message("assistant", "Hi")), tokenizer)
    assert trained_texts(found, tokenizer)[-1] == "Hi<|im_end|>"


def test_a_reply_that_holds_a_turn_end_is_trained_to_its_own_end():
    tokenizer = family("chatml")
    found = row((CHAT[0], Message("assistant", "a<|im_end|>b")), tokenizer)
    assert trained_texts(found, tokenizer) == ["a<|im_end|>b<|im_end|>"]


def test_a_reply_that_is_the_text_of_a_special_token_is_trained_as_text():
    tokenizer = family("chatml")
    found = row((CHAT[0], Message("assistant", "<|im_start|>")), tokenizer)
    assert trained_texts(found, tokenizer) == ["<|im_start|><|im_end|>"]
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert start not in found.tokens[found.loss_mask].tolist()


def test_a_generation_prompt_that_ends_with_a_space():
    tokenizer = family("zephyr")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    chat = (CHAT[0], Message("assistant", "Good"))
    prompt = PromptEncoder(tokenizer, as_message=True).encode(chat[:1])
    found = row(chat, tokenizer)
    assert found.tokens[: len(prompt)].tolist() == prompt
    assert trained_texts(found, tokenizer) == ["Good</s>"]


@cache
def marking(scheme):
    """A tokenizer that puts a mark for a space in front of each text, as Llama 2's does."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz:\n?"]
    words = [("▁", "a"), ("▁", "b"), ("a", "b")]
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *letters, "▁a", "▁b", "ab"])}
    rules = Tokenizer(models.BPE(vocabulary, words))
    if scheme == "legacy":
        rules.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        rules.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    rules.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rules, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}\n{{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant\n{% endif %}"
    )
    return tokenizer


@pytest.mark.parametrize("scheme", ["legacy", "always", "first"])
def test_a_response_goes_on_with_the_text_and_begins_none(scheme):
    from rlhf_cli.data.records.types import PromptCompletionRecord

    tokenizer = marking(scheme)
    found = row((Message("user", "a"), Message("assistant", "ab")), tokenizer)
    assert tokenizer.convert_ids_to_tokens(found.tokens[found.loss_mask]) == ["ab", "</s>"]

    record = RecordWithSource(PromptCompletionRecord("a:", " b"), "r.jsonl", 1)
    [[source]] = RecordTokenizer(tokenizer, DataConfig(), DataReport()).examples(iter([record]))
    tokens = tokenizer.convert_ids_to_tokens(source.row.tokens)
    assert tokens == ["▁a", ":", "▁b", "</s>"]
