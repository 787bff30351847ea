"""Prompts with a system message in front."""

import json
from pathlib import Path

import pytest

from rlhf_cli import cli


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def generate(*words: object) -> int:
    common = ["max_new_tokens=4", "temperature=0", "precision=fp32"]
    return cli.main(["generate", *map(str, words), *common])


def rows(*words: object) -> list[dict]:
    assert generate(*words, "output=out.jsonl") == 0
    return [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]


def test_a_system_message_stands_in_front_of_text_and_of_chats(run_of):
    asked = [{"role": "user", "content": "Hi"}]
    chat = [{"role": "system", "content": "Be brief."}, *asked]
    Path("chat.jsonl").write_text(json.dumps({"prompt": chat}) + "\n")
    Path("user.jsonl").write_text(json.dumps({"prompt": asked}) + "\n")
    expected = rows(run_of("sft"), "prompts=chat.jsonl")
    assert expected[0]["prompt"] == chat
    assert rows(run_of("sft"), "prompts=user.jsonl", "system=Be brief.") == expected
    assert rows(run_of("sft"), "prompt=Hi", "system=Be brief.") == expected


def test_a_system_message_that_cannot_be_is_refused(run_of, capsys):
    chat = [{"role": "system", "content": "a"}, {"role": "user", "content": "Hi"}]
    Path("chat.jsonl").write_text(json.dumps({"prompt": chat}) + "\n")
    for words, code, line in (
        ((run_of("sft"), "prompts=chat.jsonl"), 3, "chat.jsonl:1: has a system message of its"),
        ((run_of("sft"), "prompt=Hi", "template=never"), 2, "system: given with template=never"),
        ((run_of("pretrain"), "prompt=Hi"), 2, "system: given, and the model takes text prompts"),
    ):
        assert generate(*words, "system=Be brief.") == code
        assert f"error: {line}" in capsys.readouterr().err
