"""What rows of an example begin with alike is computed once, and changes no result."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.models.batch_layout import MIN_SHARED_TOKENS, build_flat_batch
from rlhf_cli.models.load import enable_activation_checkpointing
from tests.models.test_policy import ARCHITECTURES, gradient, make_policy, relative_error


def alike(*examples, seed=0):
    """Rows of examples, each given by what its rows share and the lengths of what follows."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count):
        return torch.randint(0, 97, (count,), generator=generator)

    parts, owner = [], []
    for number, (shared, tails) in enumerate(examples):
        begin = draw(shared)
        for tail in tails:
            parts.append(torch.cat([begin, draw(tail)]))
            owner.append(number)
    lengths = torch.tensor([len(part) for part in parts])
    ends = lengths.cumsum(0) - 1
    scored = torch.ones(int(lengths.sum()), dtype=torch.bool)
    scored[ends] = False
    return TokenBatch(torch.cat(parts), lengths, scored.nonzero().squeeze(1), torch.tensor(owner))


MIXED = alike((40, (9, 30)), (0, (12,)), (MIN_SHARED_TOKENS + 1, (5, 6, 60)), (4, (8, 8)))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("recompute", [False, True])
def test_log_probs_and_gradients_are_those_of_whole_rows(name, recompute):
    policy = make_policy(ARCHITECTURES[name], flat=True)
    if recompute:
        enable_activation_checkpointing(policy)
    shared = policy(MIXED).logp
    shared_gradient = gradient(policy, shared)
    policy.shares_prefixes = False
    whole = policy(MIXED).logp
    assert relative_error(shared, whole) < 1e-6
    for key, expected in gradient(policy, whole).items():
        assert relative_error(shared_gradient[key], expected) < 1e-5, key


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 70), st.lists(st.integers(1, 20), min_size=1, max_size=4)),
        min_size=1,
        max_size=4,
    )
)
def test_every_token_is_where_the_index_says(examples):
    rows = alike(*examples)
    flat = build_flat_batch(rows, share=True)
    index = torch.arange(len(rows.tokens)) if flat.index is None else flat.index
    assert torch.equal(flat.tokens[index], rows.tokens)
    assert torch.equal(flat.positions[index], rows.positions)
    assert sum(flat.layout.lengths) == len(flat.tokens) == int(index.max()) + 1
    several = [(shared, tails) for shared, tails in examples if len(tails) > 1]
    saved = sum(
        shared * (len(tails) - 1) for shared, tails in several if shared >= MIN_SHARED_TOKENS
    )
    assert len(flat.tokens) <= len(rows.tokens) - saved  # rows may go on alike by chance


def test_a_row_that_another_begins_with_keeps_a_token_of_its_own():
    tokens = torch.arange(50)
    rows = TokenBatch(
        torch.cat([tokens[:40], tokens]),
        torch.tensor([40, 50]),
        torch.tensor([38, 88]),
        torch.zeros(2, dtype=torch.long),
    )
    assert build_flat_batch(rows, share=True).layout.lengths == (39, 1, 11)


def test_rows_of_other_examples_share_nothing():
    one = alike((60, (5,)))
    twice = TokenBatch(
        one.tokens.repeat(2), one.lengths.repeat(2), one.scored, torch.tensor([0, 1])
    )
    assert build_flat_batch(twice, share=True).index is None


def test_what_is_computed_once_goes_through_the_model_once(monkeypatch):
    policy = make_policy(ARCHITECTURES["llama"], flat=True)
    seen = []
    policy.model.model.register_forward_hook(
        lambda m, a, k, out: seen.append(k["input_ids"].shape[1]), with_kwargs=True
    )
    policy(MIXED)
    assert seen == [40 + 39 + 12 + MIN_SHARED_TOKENS + 1 + 71 + 12 + 12]
