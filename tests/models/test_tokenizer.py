"""What a loaded tokenizer is told about its ends."""

import pytest
from tokenizers import processors

from rlhf_cli.data.tokens.encode import find_special_tokens
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.tokenizer import load_tokenizer, set_encoder_ends
from tests.data.toy import toy_tokenizer

CLS, SEP = 2, 3
NAMES = {"eos_token": None, "bos_token": None, "cls_token": "<user>", "sep_token": "<assistant>"}


def bert(**changes):
    """A tokenizer that puts two tokens around a text, and names neither begin nor end."""
    tokenizer = toy_tokenizer(None, **{**NAMES, **changes})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<user> $A <assistant>", special_tokens=[("<user>", CLS), ("<assistant>", SEP)]
    )
    return tokenizer


def test_the_tokens_of_an_encoder_around_a_text_begin_and_end_it(tmp_path, capsys):
    bert().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    tokenizer = load_tokenizer(ModelConfig(path=str(tmp_path)))
    specials = find_special_tokens(tokenizer)
    assert (specials.bos, specials.eos) == (CLS, SEP)
    assert (specials.prefix, specials.suffix) == ((CLS,), (SEP,))
    assert "tokenizer: <assistant> ends a text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tokenizer", "end"),
    [
        (bert(eos_token="<eos>"), "<eos>"),
        (toy_tokenizer(None, **NAMES), None),  # names a separator that it does not write
        (bert(sep_token=None), None),
    ],
)
def test_no_other_end_is_taken(tokenizer, end):
    set_encoder_ends(tokenizer)
    assert tokenizer.eos_token == end
