"""Text is cut in one way, by the file, whatever the class in transformers would do."""

import json

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlhf_cli.errors import ModelError
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.tokenizer import (
    TOKENIZATION_KEY,
    load_pretrained_tokenizer,
    load_tokenizer,
    tokenization_hash,
    train_tokenizer,
)
from tests.data.toy import toy_tokenizer

TEXTS = ["print(add(2, 40))\n", "def add(a, b):\n    return a + b\n", "It's 2024-05-06, isn't it?"]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture(params=["GPT2Tokenizer", "Qwen2Tokenizer"])
def folder(request, tmp_path):
    """Llama 3's rules in the file beside a class of transformers that brings its own."""
    rules = Tokenizer(models.BPE())
    apart = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rules.pre_tokenizer = pre_tokenizers.Sequence([apart, level])
    rules.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_end|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    rules.train_from_iterator(TEXTS * 8, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=rules, eos_token="<|im_end|>")
    made.chat_template = "{{ messages }}"
    made.save_pretrained(tmp_path / "made")
    edit(tmp_path / "made" / "tokenizer_config.json", tokenizer_class=request.param)
    (tmp_path / "made" / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path / "made"


def cuts(tokenizer):
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]


def test_the_file_is_followed_and_what_is_saved_is_cut_the_same_way(folder, tmp_path, capsys):
    rules = Tokenizer.from_file(str(folder / "tokenizer.json"))
    expected = [rules.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert cuts(AutoTokenizer.from_pretrained(folder)) != expected
    found = load_tokenizer(ModelConfig(path=str(folder)))
    assert cuts(found) == expected
    assert "tokenizer: text is split by tokenizer.json" in capsys.readouterr().err
    plain = AutoTokenizer.from_pretrained(folder)
    assert found.special_tokens_map.items() >= plain.special_tokens_map.items()
    assert (found.chat_template, found.get_vocab()) == (plain.chat_template, plain.get_vocab())
    found.save_pretrained(tmp_path / "saved")
    assert cuts(AutoTokenizer.from_pretrained(tmp_path / "saved")) == expected
    assert tokenization_hash(
        load_pretrained_tokenizer(str(tmp_path / "saved"))
    ) == tokenization_hash(found)
    assert "tokenizer: " not in capsys.readouterr().err


def test_a_tokenizer_that_agrees_with_its_file_is_taken_as_it_is(tmp_path, capsys):
    for name, made in (("toy", toy_tokenizer()), ("own", train_tokenizer(TEXTS, 300))):
        made.save_pretrained(tmp_path / name)
        capsys.readouterr()
        again = load_pretrained_tokenizer(str(tmp_path / name))
        assert tokenization_hash(again) == tokenization_hash(made)
        assert type(again) is type(AutoTokenizer.from_pretrained(tmp_path / name))
        assert "tokenizer: " not in capsys.readouterr().err


@pytest.mark.parametrize(
    "changed",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}},
    ],
    ids=["normalizer", "pre_tokenizer"],
)
def test_a_run_whose_tokenizer_cuts_otherwise_now_is_refused(changed, tmp_path):
    model = tmp_path / "run" / "model"
    made = train_tokenizer(TEXTS, 300)
    made.save_pretrained(model)
    (model / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "run" / "artifact.json").write_text(
        json.dumps({TOKENIZATION_KEY: tokenization_hash(made)})
    )
    load_tokenizer(ModelConfig(path=str(model)))
    edit(model / "tokenizer.json", **changed)
    with pytest.raises(ModelError, match=r"^model.path: the tokenizer of .* splits text otherwise"):
        load_tokenizer(ModelConfig(path=str(model)))


def test_a_template_or_a_token_more_is_no_other_cut():
    made = train_tokenizer(TEXTS, 300)
    before = tokenization_hash(made)
    made.chat_template = "{{ messages }}"
    made.add_tokens(["<new>"], special_tokens=True)
    assert tokenization_hash(made) == before
