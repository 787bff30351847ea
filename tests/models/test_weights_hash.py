"""Hashes of weights: equal whatever processes hold, different where one bit is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from rlhf_cli.distributed.process_group import host_store
from rlhf_cli.models.weights_hash import BLOCK, CHUNK, LANES, MASK, element_sums, hash_weights

RANK = """
import sys, torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from rlhf_cli.distributed.process_group import init_process_group, rendezvous_store
from rlhf_cli.distributed.ranks import current_ranks
from rlhf_cli.distributed.mesh import REPLICATE
from rlhf_cli.models.weights_hash import hash_weights
from tests.models.test_weights_hash import small_model
rank, size, replicas = map(int, sys.argv[1:])
init_process_group(rendezvous_store("env://", rank, size), rank, size, rank)
ranks = current_ranks()
model = small_model()
whole = hash_weights(model, ranks)
shape = (replicas, size // replicas) if replicas > 1 else (size,)
names = (REPLICATE, "shard") if replicas > 1 else ("shard",)
fully_shard(model, mesh=init_device_mesh("cpu", shape, mesh_dim_names=names))
assert model[0].weight.to_local().shape[0] < 101
print(whole, hash_weights(model, ranks))
"""


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 101), nn.Linear(101, 3, bias=False))


def sharded_hashes(size, replicas):
    store, port = host_store()
    variables = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(size), str(replicas)],
            env=variables,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    texts = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert store is not None
    return {word for text in texts for word in text.split()}


def test_shards_have_the_hash_of_the_whole():
    assert sharded_hashes(2, 1) == {hash_weights(small_model())}


@pytest.mark.slow
@pytest.mark.parametrize(("size", "replicas"), [(3, 1), (4, 2)])
def test_any_number_of_processes_and_replicas_has_one_hash(size, replicas):
    assert sharded_hashes(size, replicas) == {hash_weights(small_model())}


@pytest.mark.parametrize("cut", [1, 1000, BLOCK, CHUNK - 1, CHUNK, CHUNK + 5])
def test_sums_of_parts_add_up(cut):
    bits = torch.randint(-30000, 30000, (CHUNK + 70_000,), dtype=torch.int16)
    parts = [element_sums(bits[:cut], 0), element_sums(bits[cut:], cut)]
    added = [(parts[0][lane] + parts[1][lane]) & MASK for lane in range(LANES)]
    assert added == element_sums(bits, 0)


def test_the_sums_of_two_elements_are_those_by_hand():
    numbers = torch.tensor([3, -5], dtype=torch.int32)
    one, other = (element_sums(numbers[i : i + 1], i) for i in range(2))
    unit, next_unit = (element_sums(torch.ones(1, dtype=torch.int32), i) for i in range(2))
    assert one == [3 * value & MASK for value in unit]
    assert other == [-5 * value & MASK for value in next_unit]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8])
def test_one_bit_counts_and_two_exchanged_elements_too(dtype):
    layer = nn.Linear(64, 64, bias=False)
    layer.weight = nn.Parameter(layer.weight.mul(100).to(dtype), requires_grad=False)
    before = hash_weights(layer)
    layer.weight[3, [4, 5]] = layer.weight[3, [5, 4]]
    exchanged = hash_weights(layer)
    layer.weight.view(torch.uint8)[0, 0] ^= 1
    assert len({before, exchanged, hash_weights(layer)}) == 3


def test_names_and_shapes_count():
    flat = torch.arange(12.0)
    modules = [nn.ParameterDict({name: nn.Parameter(flat.view(3, 4))}) for name in ("a", "b")]
    modules.append(nn.ParameterDict({"a": nn.Parameter(flat.view(4, 3))}))
    assert len({hash_weights(module) for module in modules}) == 3
