"""What benchmarks time is what the package does: a lever changes the time, not the loss."""

import mmap
import sys

import pytest
import torch
from torch.testing import assert_close

from benchmarks.heads import find, operands, pass_of
from benchmarks.memory import forget_peak, held_bytes, peak_bytes
from benchmarks.steps import Step, at_all_positions, likelihood
from benchmarks.workers.growth import Point, flop, make_rows, micro_batches
from rlhf_cli.kernels.registry import choose
from rlhf_cli.models.policy import Policy
from rlhf_cli.train.flops import FlopCount
from rlhf_cli.train.throughput import count_flops
from tests.helpers import random_rows, rows_of, tiny_llama

CPU = torch.device("cpu")


def make_policy():
    return Policy(tiny_llama(), choose("auto", CPU)[0], flat=True)


def test_all_positions_are_those_that_a_token_of_the_same_row_follows():
    rows = at_all_positions(random_rows([3, 1, 2]))
    assert rows.scored.tolist() == [0, 1, 4]


def test_the_loss_does_not_depend_on_where_the_output_layer_is_asked():
    rows = rows_of([5, 6, 7, 8], [9, 3, 4], scored=[[2], [0, 1]])
    policy = make_policy()
    whole, trained = (likelihood(policy, everywhere)(rows) for everywhere in (True, False))
    assert_close(whole.terms["nll"].total, trained.terms["nll"].total)


def test_a_step_is_taken():
    policy = make_policy()
    step = Step(policy, [random_rows([5, 9])], likelihood(policy), torch.float32)
    before = policy.model.lm_head.weight.detach().clone()
    assert step.run() > 0
    assert not torch.equal(before, policy.model.lm_head.weight)


def test_micro_batches_have_all_rows_of_a_prompt_together():
    parts = micro_batches(Point(tokens=320, rows=64, vocab=97, samples=8))
    assert [len(part.lengths) for part in parts] == [8] * 8
    assert all(len(part.example_of_row.unique()) == 1 for part in parts)


def test_flop_of_rows_alone_are_those_of_the_package():
    rows = make_rows(Point(tokens=40, rows=4, vocab=97, samples=0), 4)
    work = count_flops(make_policy())
    assert flop(work, rows) == pytest.approx(work.of_rows(rows.row_lengths, len(rows.scored)))


def test_flop_of_a_shared_prompt_count_it_once():
    rows = make_rows(Point(tokens=320, rows=2, vocab=97, samples=2), 2)
    alone, response = 256 * 257 / 2, 64 * 65 / 2
    found = flop(FlopCount(token=1000, pair=1, scored=0), rows)
    assert found == 1000 * (256 + 2 * 64) + alone + 2 * (response + 64 * 256)


def test_liger_gives_the_same_log_probs():
    pytest.importorskip("liger_kernel")
    given = operands((16, 8, 50), torch.float32, CPU)
    found = [pass_of(find(name), *given)[1] for name in ("liger", "eager", "chunked")]
    assert found == pytest.approx([found[0]] * 3, rel=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_the_peak_is_one_since_it_was_forgotten():
    forget_peak(CPU)
    before = held_bytes(CPU)
    with mmap.mmap(-1, 32 << 20) as kept:  # not of malloc, which may have as much at hand
        for page in range(0, len(kept), mmap.PAGESIZE):
            kept[page] = 1
        assert peak_bytes(CPU) - before >= len(kept) * 0.9
    forget_peak(CPU)
    assert peak_bytes(CPU) - before < 8 << 20
