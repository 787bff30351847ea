"""End tokens, begin tokens, truncation, template and thoughts."""

import copy

import pytest

from rlhf_cli.data.checks.tokens import find_turns
from tests.data.toy import turns

DROPS_THOUGHTS = (
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_END = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HELLO = turns("hello there", "good day to you")


def chat(*said):
    return {"messages": turns(*said)}


def test_turns_are_runs_of_trained_tokens_within_rows(read):
    examples = read(chat("a", "b", "c", "d"), chat("e", "f")).examples
    found = find_turns(examples)
    assert found.rows.tolist() == [0, 0, 1]
    assert found.last.tolist() == [False, True, True]
    assert all(examples.loss_mask[s:e].all() for s, e in zip(found.starts, found.ends, strict=True))


def test_every_turn_of_a_good_template_ends_with_a_trained_token(find):
    assert "end-token-untrained" not in find(chat("a", "b", "c", "d"))


def test_turns_without_an_end_token_are_an_error(find, tokenizer):
    tokenizer.chat_template = NO_END
    found = find(chat("a", "b", "c", "d", "e", "f"), tokenizer=tokenizer)["end-token-untrained"]
    assert found.severity == "error"  # of three turns only the last has one, which the loader adds
    assert "2 of 3" in found.message
    assert found.examples[0].location == "rows.jsonl:1"


def test_an_end_token_that_the_model_does_not_stop_at_is_noted(read, tokenizer):
    from dataclasses import replace

    from rlhf_cli.data.checks.tokens import check_end_tokens

    data = read(chat("a", "b"), tokenizer=tokenizer)
    assert list(check_end_tokens(data)) == []
    [found] = check_end_tokens(replace(data, end_tokens=frozenset({7})))
    assert found.code == "end-token-new"


def test_a_doubled_begin_token_is_found(find, tokenizer):
    tokenizer.bos_token = "<|system|>"
    once, twice = "<|system|>a", "<|system|><|system|>a"
    assert "double-bos" not in find({"prompt": once, "completion": " b"}, tokenizer=tokenizer)
    found = find({"prompt": twice, "completion": " b"}, tokenizer=tokenizer)["double-bos"]
    assert (found.count, found.severity) == (1, "error")


def test_truncation_says_what_is_cut(find):
    long = "word " * 60
    rows = [
        {"prompt": long, "completion": " yes"},
        {"prompt": "short", "completion": f" {long}"},
        {"prompt": "short", "completion": " yes"},
    ]
    found = find(*rows, max_length=40)
    assert found["truncated-prompts"].examples[0].location == "rows.jsonl:1"
    assert found["truncated-end-token"].examples[0].location == "rows.jsonl:2"
    assert (found["truncated-end-token"].count, found["truncated-end-token"].total) == (1, 3)
    assert "data.max_length=" in found["truncated-end-token"].advice
    whole = find(*rows, max_length=400)
    assert not {"truncated-prompts", "truncated-end-token"} & set(whole)


def test_documents_are_split_and_lose_nothing(find):
    assert "truncated-end-token" not in find({"text": "a b " * 99}, stage="pretrain", max_length=20)


def test_responses_that_are_cut_away_are_left_out(find):
    row = {"prompt": "word " * 60, "completion": " yes"}
    options = {"max_length": 20, "truncation": "response_end"}
    found = find(row, {"prompt": "a", "completion": " b"}, **options)
    assert found["response-cut-off"].examples[0].location == "rows.jsonl:1"
    assert find(row, max_length=20, truncation="refuse")["too-long"].severity == "error"


def test_prompts_without_room_for_a_response(find):
    rows = [{"prompt": "word " * 60}, {"prompt": "short"}]
    found = find(*rows, stage="ppo", max_length=140)["no-room"]
    assert (found.count, found.total, found.severity) == (1, 2, "warning")
    assert "sampling.max_new_tokens=128" in found.message
    assert "no-room" not in find(*rows, stage="ppo", max_length=400)


def test_unknown_characters_are_found(find, tokenizer):
    tokenizer.unk_token = "<|user|>"
    row = {"prompt": "a <|user|>", "completion": " b"}
    assert find(row, tokenizer=tokenizer)["unknown-tokens"].count == 1
    clean = {"prompt": "a", "completion": " b"}
    assert "unknown-tokens" not in find(clean, tokenizer=tokenizer)


def test_padding_that_is_the_end_token_is_noted(find, tokenizer):
    assert "pad-is-eos" not in find(chat("a", "b"), tokenizer=tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    assert find(chat("a", "b"), tokenizer=tokenizer)["pad-is-eos"].severity == "note"


def test_a_begin_token_of_template_and_tokenizer_is_noted(find, tokenizer):
    from tokenizers.processors import TemplateProcessing

    assert "bos-in-template" not in find(chat("a", "b"), tokenizer=tokenizer)
    tokenizer.bos_token = "<|system|>"
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", tokenizer.bos_token_id)]
    )
    assert "bos-in-template" in find(chat("a", "b"), tokenizer=tokenizer)


def test_a_template_that_rewrites_turns_is_found(find, tokenizer):
    thought = "<think>one and one</think>two"
    row = chat("1+1?", thought, "2+2?", "four")
    assert "template-rewrites-turns" not in find(row, tokenizer=tokenizer)
    other = copy.deepcopy(tokenizer)
    other.chat_template = DROPS_THOUGHTS
    found = find(row, tokenizer=other)
    assert found["template-rewrites-turns"].severity == "warning"
    assert "message 1" in found["template-rewrites-turns"].examples[0].text
    assert found["thoughts-dropped"].examples[0].text == "one and one"
    assert "trained in 0 of 1" in found["thoughts"].message
    last = find(row, tokenizer=other, train_on="last_turn")
    assert last["template-rewrites-turns"].severity == "note"


def test_thoughts_in_the_loss_are_counted(find):
    found = find(chat("1+1?", "<think>one and one</think>two"), chat("a", "b"))
    assert found["thoughts"].count == 1
    assert "trained in 1 of 1" in found["thoughts"].message
    assert "thoughts-dropped" not in found
    assert "thoughts" not in find(chat("a", "b"))


@pytest.mark.parametrize(("template", "noted"), [("auto", True), ("always", False)])
def test_text_rows_beside_a_chat_template(find, template, noted):
    row = {"prompt": "Tea?", "completion": "Yes."}
    found = find(row, keys={"template": template})
    assert ("chat-template-unused" in found) is noted
    assert ("no-separator" in found) is noted


def test_responses_that_begin_with_a_space_are_separated(find):
    assert "no-separator" not in find({"prompt": "Tea?", "completion": " Yes."})
    found = find({"prompt": "Tea? ", "completion": "Yes."})
    assert "prompt-ends-with-space" in found
    assert "no-separator" not in found
