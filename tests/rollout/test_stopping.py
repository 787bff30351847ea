from types import SimpleNamespace

import pytest

from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.stopping import StopCriteria, end_token_ids

PIECES = ["<end>", "a", "b", "END", "E", "ND", "ND of", "\n", "\nUs", "er:", ""]
TOKENIZER = SimpleNamespace(eos_token_id=0, decode=lambda ids: "".join(PIECES[i] for i in ids))


def model(ends):
    return SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=ends))


def test_end_tokens_are_the_tokenizers_and_the_models():
    assert end_token_ids(model([5, 0]), TOKENIZER) == [0, 5]
    assert end_token_ids(model(7), TOKENIZER) == [0, 7]
    assert end_token_ids(model(None), SimpleNamespace(eos_token_id=None)) == []


@pytest.mark.parametrize(
    ("token_ids", "expected"),
    [
        ([1, 0], True),
        ([1, 2], False),
        ([3], True),
        ([1, 4], False),
        ([1, 4, 5], True),
        ([1, 4, 6], True),  # the text goes on behind the string
        ([4, 10, 10, 10, 5], True),  # tokens without text lie between
        ([1, 8, 9], True),
        ([1, 7, 9], False),
    ],
)
def test_a_stop_string_is_found_wherever_tokens_divide_it(token_ids, expected):
    stop = StopCriteria(model(None), TOKENIZER, SamplingConfig(stop=["END", "\nUser:"]))
    assert stop.is_met(token_ids) == expected


def test_a_minimum_over_the_maximum_is_refused():
    [line] = SamplingConfig(max_new_tokens=4, min_new_tokens=5).problems()
    assert line.endswith("Try sampling.min_new_tokens=4")
    assert SamplingConfig(max_new_tokens=4, min_new_tokens=4).problems() == []
