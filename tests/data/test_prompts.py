"""Prompts read from files."""

import json

from rlhf_cli.data.prompts import load_prompts


def test_chats_are_prompts_with_and_without_an_answer(tmp_path):
    file = tmp_path / "chats.jsonl"
    user, assistant = {"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Yes."}
    rows = [[user], [user, assistant], [user, assistant, user]]
    file.write_text("".join(json.dumps({"messages": row, "answer": "b"}) + "\n" for row in rows))
    found = load_prompts(str(file))
    assert [len(prompt) for prompt in found.prompts] == [1, 1, 3]
    assert found.columns == {"answer": ["b"] * 3}


def test_a_text_file_has_a_prompt_a_line(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffone\u2028two\r\n\r\nthree\x85\rfour\x0c".encode())
    assert load_prompts(str(file)).prompts == ["one\u2028two", "three\x85\rfour\x0c"]
