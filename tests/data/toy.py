"""A tokenizer of single characters, so that a test can say its ids, and files to read."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

EOS, BOS, USER, ASSISTANT, TURN, UNKNOWN, NEWLINE, SPACE = range(8)
SPECIAL = ["<eos>", "<bos>", "<user>", "<assistant>", "<turn>", "<unk>"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
A, B, C, D, E = range(8, 13)

CHATML = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def toy_tokenizer(template: str | None = CHATML, *, adds_bos: bool = False, **changes: Any) -> Any:
    """Character by character: `a` is 8, `b` is 9; special tokens are 0 to 5."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, "\n", " ", *LETTERS])}
    rules = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    rules.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    if adds_bos:
        rules.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", BOS)]
        )
    tokens = {"eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>", **changes}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rules,
        additional_special_tokens=["<user>", "<assistant>", "<turn>"],
        **{name: token for name, token in tokens.items() if token is not None},
    )
    tokenizer.chat_template = template
    return tokenizer


def byte_tokenizer() -> Any:
    """A token for each byte, and `<eos>`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    rules = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=rules, eos_token="<eos>")


def write_jsonl(path: Path, *rows: Any) -> Path:
    """A file with one row a line; text stands as it is, anything else becomes JSON."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def turns(*said: str) -> list[dict[str, str]]:
    """Messages of user and assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(said)]
