"""8-bit moments of a checkpoint, for the rows of the rank that saved them and for others."""

import pytest
import torch
from bitsandbytes import functional

from rlhf_cli.train import stored_moments
from rlhf_cli.train.stored_moments import BLOCK
from tests.train.shards import even_cuts, layouts_of, load, make_optimizer, save, take_step, values

KIND = "adamw_8bit"


def full(count):
    return [layouts_of(even_cuts(count), rank) for rank in range(count)]


def dequantized(optimizer, number):
    """A moment of the embedding in fp32, whether it is kept in 8 bits or not."""
    found = optimizer.moments()
    state = found[f"embedding/state{number}"]
    if state.dtype != torch.uint8:
        return state
    scales, qmap = found[f"embedding/absmax{number}"], found[f"embedding/qmap{number}"]
    return functional.dequantize_blockwise(state, absmax=scales, code=qmap, blocksize=BLOCK)


def kinds(optimizers):
    return [one.moments()["embedding/state1"].dtype for one in optimizers]


def whole_moment(optimizers, number):
    return torch.cat([dequantized(one, number) for one in optimizers])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_same_rows_are_bitwise_those_of_the_checkpoint(tmp_path, count):
    loaded = load(save(tmp_path, full(count), kind=KIND), full(count), KIND)
    for layouts, optimizer in zip(full(count), loaded, strict=True):
        expected, found = values(make_optimizer(layouts, KIND, steps=2)), values(optimizer)
        for name, value in expected.items():
            if layouts[name.partition("/")[0]].rows:
                assert torch.equal(value, found[name]), name
                assert value.dtype == found[name].dtype


@pytest.mark.parametrize(("saved", "continued"), [(1, 2), (1, 3), (3, 1), (2, 3), (4, 1), (3, 2)])
def test_other_rows_are_those_of_the_checkpoint_within_the_rounding_to_8_bits(
    tmp_path, saved, continued
):
    """Rounding moves a value by at most half of the map's widest step, times its block's scale.

    For the first moment that is 0.7 % of the block's largest value, for the second 0.35 %.
    """
    path = save(tmp_path, full(saved), kind=KIND)
    before = [make_optimizer(layouts, KIND, steps=2) for layouts in full(saved)]
    after = load(path, full(continued), KIND)
    for number, signed in (("1", True), ("2", False)):
        step = functional.create_dynamic_map(signed=signed).diff().max()
        old, new = whole_moment(before, number), whole_moment(after, number)
        assert (old - new).abs().max() <= 1.001 * step / 2 * old.abs().max()  # fp32 products
        assert old.abs().mean() > 0


def test_pieces_of_both_kinds_are_joined_and_divided(tmp_path):
    """Of 40 rows a third has 14: 2100 values, in 32 bits. A whole has 6000, in 8 bits."""
    three = save(tmp_path / "3", full(3), kind=KIND)
    [whole] = load(three, full(1), KIND)
    assert kinds([whole]) == [torch.uint8]
    one = save(tmp_path / "1", full(1), kind=KIND)
    assert kinds(load(one, full(3), KIND)) == [torch.float32] * 3
    uneven = [layouts_of({**even_cuts(2), "embedding": [0, 30, 40]}, rank) for rank in range(2)]
    mixed = load(one, uneven, KIND)
    assert kinds(mixed) == [torch.uint8, torch.float32]
    again = load(save(tmp_path / "2", uneven, kind=KIND), full(1), KIND)
    assert kinds(again) == [torch.uint8]


def test_values_kept_in_32_bits_are_exact_for_any_rows(tmp_path):
    path = save(tmp_path, full(3), kind=KIND)
    before = [make_optimizer(layouts, KIND, steps=2) for layouts in full(3)]
    [after] = load(path, full(1), KIND)
    for slot in ("state1", "state2"):
        old = torch.cat([one.moments()[f"matrix/{slot}"] for one in before])
        assert torch.equal(after.moments()[f"matrix/{slot}"], old)


def test_only_blocks_with_the_ranks_values_are_dequantized(tmp_path, monkeypatch):
    path = save(tmp_path, full(1), kind=KIND)
    sizes = []
    real = stored_moments._dequantize
    monkeypatch.setattr(
        stored_moments,
        "_dequantize",
        lambda blocks, *rest: sizes.append(len(blocks)) or real(blocks, *rest),
    )
    load(path, [full(4)[2]], KIND)
    first, last = 20 * 150 // BLOCK, -(-30 * 150 // BLOCK)
    assert sizes == [(last - first) * BLOCK] * 2


def test_the_optimizer_says_which_moments_it_keeps_in_8_bits():
    assert make_optimizer(full(1)[0], KIND).eight_bit_from == 4096
    assert make_optimizer(full(1)[0], "adamw").eight_bit_from == float("inf")


def test_a_continued_optimizer_steps(tmp_path):
    """The moments of other rows work in the optimizer, and its steps are counted on."""
    [after] = load(save(tmp_path, full(3), kind=KIND), full(1), KIND)
    assert after.moments()["embedding/step"] == 2
    before = after.masters["embedding"].clone()
    take_step(after, 77)
    moved = (after.masters["embedding"] - before).abs()
    assert after.moments()["embedding/step"] == 3
    assert 0 < moved.max() < 0.1
