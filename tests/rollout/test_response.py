"""Text of responses: only end and padding tokens are left out."""

import pytest
import torch

from rlhf_cli.rollout.response import ResponseStreamer, response_text
from tests.data.test_templates import family


@pytest.fixture
def tokenizer():
    """A ChatML tokenizer with two more special tokens."""
    from copy import deepcopy

    found = deepcopy(family("chatml"))
    found.add_special_tokens({"pad_token": "<|pad|>"})
    found.add_tokens(["<think>", "</think>"], special_tokens=True)
    return found


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_only_end_and_padding_tokens_are_left_out(tokenizer):
    tokens = ids(tokenizer, "<think>Hm.</think> Yes.<|im_end|><|pad|>")
    ends = [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert response_text(tokenizer, tokens, ends) == "<think>Hm.</think> Yes."
    assert response_text(tokenizer, tokens, ends, skip_special_tokens=True) == "Hm. Yes."
    assert response_text(tokenizer, tokens, []) == "<think>Hm.</think> Yes.<|im_end|>"


def test_text_is_not_cleaned_up(tokenizer):
    tokenizer.clean_up_tokenization_spaces = True
    assert response_text(tokenizer, ids(tokenizer, "Yes , I do n't ."), []) == "Yes , I do n't ."


def test_a_streamed_response_is_the_same_text(tokenizer, capsys):
    tokens = ids(tokenizer, "<think>Hm.</think> Yes.<|im_end|>")
    ends = [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    streamer = ResponseStreamer(tokenizer, ends)
    streamer.put(torch.tensor(ids(tokenizer, "Well?<|im_end|>")))
    for token in tokens:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert capsys.readouterr().out == "<think>Hm.</think> Yes.\n"
