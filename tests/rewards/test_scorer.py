import pytest

from rlhf_cli.rewards.samples import Samples
from rlhf_cli.rewards.scorer import LengthPenalty, PatternScorer
from tests.rewards.helpers import samples, user


def test_a_pattern_is_found_anywhere_in_the_response_and_not_in_the_prompt():
    three = samples(("yes?", "yes"), ("a", "oh yes"), ("yes", "no"))
    assert PatternScorer("yes")(three) == [1, 1, 0]
    assert PatternScorer("^yes$")(three) == [1, 0, 0]


def test_tokens_past_the_free_ones_cost():
    rule = LengthPenalty(0.5, 2)
    assert rule(Samples([""] * 3, [""] * 3, [[1]] * 3, [[], [1, 2], [1, 2, 3, 4]])) == [0, 0, -1]


def test_samples_keep_their_columns_when_they_are_parted():
    three = samples(("a b", "c"), (user("d"), "e"), ("f", "g"), answer=[1, 2, 3])
    part = three.part(1, 3)
    assert (len(part), part.responses, part.columns) == (2, ["e", "g"], {"answer": [2, 3]})
    plain = part.call_arguments()
    assert plain["prompts"] == [[{"role": "user", "content": "d"}], "f"]
    with pytest.raises(ValueError, match="different lengths"):
        samples(("a", "b"), answer=[])
