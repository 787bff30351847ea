"""ChatML for tokenizers without a template, and tokenizers that lack other things."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from rlhf_cli import cli
from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.dataset import load_examples
from rlhf_cli.data.records.types import ChatRecord, PromptCompletionRecord
from rlhf_cli.data.tokens.chat_template import turn_end
from rlhf_cli.models.tokenizer import add_chatml, train_tokenizer
from rlhf_cli.resources import shipped_model
from tests.data.toy import turns, write_jsonl
from tests.stages.conftest import FAST

SFT = (PromptCompletionRecord, ChatRecord)
TEXT = "system user assistant\nHow are you? Well."


def bare(**changes):
    """A byte-level BPE without a chat template."""
    tokenizer = train_tokenizer([TEXT] * 5, 320)
    tokenizer.chat_template = None
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def test_the_template_and_its_missing_tokens_are_added(capsys):
    tokenizer = bare()
    size = len(tokenizer)
    assert add_chatml(tokenizer) == [size, size + 1]
    assert len(tokenizer) == size + 2
    assert "adding <|im_start|> and <|im_end|>" in capsys.readouterr().err
    chat = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "Well."}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == (
        "<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\nWell.<|im_end|>\n"
    )


def test_tokens_that_are_there_are_not_added_again(capsys):
    tokenizer = bare()
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    assert add_chatml(tokenizer) == []
    assert "adding" not in capsys.readouterr().err


def test_a_saved_tokenizer_has_both(tmp_path):
    tokenizer = bare()
    _, end = add_chatml(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.chat_template == tokenizer.chat_template
    ids = again("a<|im_end|>")["input_ids"]
    assert ids[-1] == end
    assert again.decode(ids, skip_special_tokens=True) == "a"


def loaded(tmp_path, tokenizer, *rows):
    path = write_jsonl(tmp_path / "r.jsonl", *rows)
    return load_examples(DataConfig(path=str(path)), "sft", tokenizer, SFT)[0]


def test_the_turn_end_is_trained_and_ends_generation(tmp_path):
    tokenizer = bare()
    _, end = add_chatml(tokenizer)
    examples = loaded(tmp_path, tokenizer, {"messages": turns("How?", "Well.")})
    assert tokenizer.decode(examples.tokens[examples.loss_mask]) == "Well.<|im_end|>"
    assert turn_end(tokenizer) == end


@pytest.mark.parametrize("pad", [None, "<|end|>"])
def test_without_pad_or_with_pad_as_end_the_end_is_trained(tmp_path, pad):
    tokenizer = bare(pad_token=pad)
    examples = loaded(tmp_path, tokenizer, {"prompt": "How?", "completion": " Well."})
    assert tokenizer.decode(examples.tokens[examples.loss_mask]) == " Well.<|end|>"


@pytest.fixture
def model(tmp_path, capsys):
    """Changes the shipped tokenizer in a copy of the shipped model; gives the folder."""
    folder = tmp_path / "model"
    shutil.copytree(shipped_model(), folder)

    def change(*removed, rows=4):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for name in removed:
            setattr(tokenizer, name, None)
        for file in folder.glob("chat_template*"):
            file.unlink()
        tokenizer.save_pretrained(folder)
        shape = json.loads((folder / "config.json").read_text())
        shape["vocab_size"] = len(tokenizer) + rows
        (folder / "config.json").write_text(json.dumps(shape))
        return str(folder)

    return change


def run(model, data, out):
    argv = [f"model={model}", "model.init=scratch", f"data={data}", f"output_dir={out}"]
    return cli.main(["sft", *argv, "max_steps=1", *FAST])


def test_chats_train_on_a_tokenizer_without_template(model, tmp_path, capsys):
    data = write_jsonl(tmp_path / "r.jsonl", {"messages": turns("How?", "Well.")})
    assert run(model("chat_template"), data, tmp_path / "run") == 0
    shown = capsys.readouterr().err
    assert shown.count("chat template: ChatML, as the tokenizer has none, adding <|im_start|>") == 1
    saved = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert "<|im_start|>assistant" in saved.chat_template
    ends = json.loads((tmp_path / "run" / "model" / "generation_config.json").read_text())
    assert saved.convert_tokens_to_ids("<|im_end|>") in ends["eos_token_id"]


def test_text_needs_no_template(model, tmp_path, capsys):
    data = write_jsonl(tmp_path / "r.jsonl", {"prompt": "How?", "completion": " Well."})
    assert run(model("chat_template"), data, tmp_path / "run") == 0
    assert "ChatML" not in capsys.readouterr().err


def test_a_tokenizer_without_pad_is_saved_without_one(model, tmp_path):
    """Rows are never padded here; whoever pads later is to choose a token on purpose."""
    data = write_jsonl(tmp_path / "r.jsonl", {"prompt": "How?", "completion": " Well."})
    assert run(model("pad_token"), data, tmp_path / "run") == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "model").pad_token is None
    assert json.loads((tmp_path / "run" / "artifact.json").read_text())["pad_token_id"] is None
