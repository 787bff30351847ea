"""Sharded models in one process: what is sharded, where rows lie, when they are gathered."""

from dataclasses import replace

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.testing import assert_close
from torch.testing._internal.distributed.fake_pg import FakeStore

from rlhf_cli.data.equal_passes import equal_passes
from rlhf_cli.distributed.mesh import create_mesh
from rlhf_cli.distributed.process_group import destroy_process_group
from rlhf_cli.distributed.shards import ShardLayout
from rlhf_cli.errors import ConfigError
from rlhf_cli.kernels.registry import choose
from rlhf_cli.launch.config import LaunchConfig
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.probes import probe, tolerance
from rlhf_cli.models.sharding import (
    copy_shards,
    decoder_layers,
    gather_whole,
    gathered,
    gathered_bytes,
    layout_of,
    local_tensor,
    shard_model,
    shards_of,
    units,
)
from rlhf_cli.models.weights_hash import hash_weights
from rlhf_cli.rewards.rewards import WeightedScorer
from rlhf_cli.rewards.samples import Samples
from rlhf_cli.stages.dpo.loss import MovingReference
from rlhf_cli.stages.reference import ReferenceModel
from rlhf_cli.train.config import TrainConfig
from rlhf_cli.train.optim import MasterAdamW
from tests.helpers import random_rows, rows_of, tiny_llama
from tests.thread_ranks import on_ranks

CPU = torch.device("cpu")
# ignored where the module is imported, which pytest undoes; no caller changes outputs in place
pytestmark = pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
ROWS = random_rows([5, 9, 3])


@pytest.fixture
def processes():
    """Makes this process one of several that exist in name only: their collectives do nothing."""

    def pretend(rank, world_size):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)

    yield pretend
    destroy_process_group()


@pytest.fixture
def mesh():
    """A mesh of this process alone."""
    yield create_mesh(LaunchConfig(shard="full"), CPU)
    destroy_process_group()


def policy_of(**changes):
    return Policy(tiny_llama(**changes), choose("auto", CPU)[0], flat=True)


def sharded_policy(mesh, compute=torch.float32, **changes):
    found = policy_of(**changes)
    shard_model(found, mesh=mesh, compute=compute)
    return found


@pytest.mark.parametrize(("rank", "group"), [(0, 0), (1, 0), (2, 1), (3, 1)])
def test_hybrid_divides_the_processes_into_groups(processes, rank, group):
    processes(rank, 4)
    found = create_mesh(LaunchConfig(shard="hybrid", replicas=2), CPU)
    assert found.replicas == 2
    members = dist.get_process_group_ranks(found.device_mesh.get_group("shard"))
    assert members == [2 * group, 2 * group + 1]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"replicas": 2, "processes": 2}, "launch.replicas: got 2 with launch.shard=none"),
        ({"shard": "hybrid"}, "launch.shard: got hybrid with launch.replicas=1"),
        ({"shard": "hybrid", "replicas": 2, "processes": 2}, "replicas=2 and 2 processes"),
        ({"shard": "hybrid", "replicas": 2, "processes": 5}, "launch.processes: got 5"),
        ({"offload": "all"}, "launch.offload: got all with launch.shard=none"),
        ({"context_parallel": 2, "processes": 3}, "launch.processes: got 3"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(keys, said):
    [problem] = LaunchConfig(**keys).problems()
    assert said in problem
    assert "Try " in problem


def test_processes_that_fit_the_mesh_are_accepted():
    assert LaunchConfig(shard="hybrid", replicas=2, processes=4).problems() == []
    assert LaunchConfig(shard="full", context_parallel=2, processes=4).problems() == []


def test_masters_on_the_host_are_copies_that_a_step_writes_back(mesh):
    gpu = replace(mesh, device=torch.device("cuda"), offload="optimizer")
    policy, plain = sharded_policy(mesh), sharded_policy(mesh)
    for model, own in ((policy, gpu), (plain, mesh)):
        optimizer = MasterAdamW(model, TrainConfig(), torch.float32, own)
        (-model(ROWS).logp.mean()).backward()
        optimizer.step(0.1)
        name = next(iter(optimizer.masters))
        held = local_tensor(shards_of(model)[name]).data_ptr()
        assert (optimizer.masters[name].data_ptr() == held) == (own is mesh)
    for name, param in shards_of(policy).items():
        assert torch.equal(local_tensor(param), local_tensor(shards_of(plain)[name])), name


@pytest.mark.parametrize(("world_size", "replicas"), [(4, 3), (2, 2), (3, 2)])
def test_processes_that_do_not_fit_the_groups_are_refused(processes, world_size, replicas):
    processes(0, world_size)
    with pytest.raises(ConfigError, match=rf"launch.replicas: got {replicas}.*{world_size} proc"):
        create_mesh(LaunchConfig(shard="hybrid", replicas=replicas), CPU)


def test_a_group_that_counts_no_calls_is_destroyed(processes):
    processes(0, 2)
    destroy_process_group()
    assert not dist.is_initialized()


def test_nothing_is_created_where_nothing_is_sharded():
    assert create_mesh(LaunchConfig(), CPU) is None
    assert not dist.is_initialized()


# numbers of processes differ, because torch keeps the coordinates in meshes of one shape
@pytest.mark.parametrize(
    ("rank", "world_size", "rows"), [(0, 5, (0, 20)), (1, 4, (25, 25)), (2, 3, (66, 31))]
)
def test_each_process_holds_consecutive_rows(processes, rank, world_size, rows):
    processes(rank, world_size)
    policy = sharded_policy(create_mesh(LaunchConfig(shard="full"), CPU))
    weight = policy.model.get_input_embeddings().weight
    layout = layout_of(weight)
    assert layout == ShardLayout((97, 32), *rows, writes=True)
    assert tuple(local_tensor(weight).shape) == (rows[1], 32)
    assert not layout.is_whole


def test_only_the_first_group_saves_its_rows(processes):
    processes(2, 4)
    policy = sharded_policy(create_mesh(LaunchConfig(shard="hybrid", replicas=2), CPU))
    layout = layout_of(policy.model.get_input_embeddings().weight)
    assert layout == ShardLayout((97, 32), 0, 49, writes=False)


def test_a_tensor_that_is_not_sharded_is_whole():
    assert layout_of(torch.zeros(3, 2), writes=False) == ShardLayout((3, 2), 0, 3, writes=False)
    assert layout_of(torch.zeros(())).is_whole


class Layer(nn.Module):
    """A layer with experts."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))


class Other(Layer):
    """A layer of another class."""


@pytest.mark.parametrize("kinds", [(Layer,), (Layer, Layer), (Layer, Other, Layer)])
def test_units_are_the_layers_and_not_their_experts(kinds):
    layers = nn.ModuleList(kind() for kind in kinds)
    model = nn.ModuleDict(
        {"embedding": nn.Linear(2, 2), "inner": nn.ModuleDict({"layers": layers})}
    )
    assert decoder_layers(model) == list(layers)


def test_the_layers_of_a_vision_tower_are_units_too():
    text, vision = (nn.ModuleList([Layer(), Layer()]) for _ in range(2))
    inner = nn.ModuleDict({"vision": nn.ModuleDict({"layers": vision}), "layers": text})
    assert decoder_layers(inner) == [*vision, *text]


def test_lists_without_parameters_are_no_units():
    assert decoder_layers(nn.ModuleDict({"drop": nn.ModuleList([nn.Dropout()])})) == []


def test_a_sharded_model_gives_the_same_bits_and_gradients(mesh):
    plain, policy = policy_of(), sharded_policy(mesh)
    expected, got = plain(ROWS).logp, policy(ROWS).logp
    assert torch.equal(got, expected)
    expected.sum().backward()
    got.sum().backward()
    own = shards_of(policy)
    assert all(isinstance(param, DTensor) for param in own.values())
    for name, param in plain.named_parameters():
        assert torch.equal(local_tensor(own[name].grad), param.grad), name


def test_a_pass_after_a_step_takes_the_new_weights(mesh):
    """The root keeps its weights gathered after a pass without gradient."""
    policy = sharded_policy(mesh)
    optimizer = MasterAdamW(policy, TrainConfig(), torch.float32, mesh)
    policy(ROWS).logp.sum().backward()
    with torch.no_grad():
        before = policy(ROWS).logp
    optimizer.step(0.1)
    plain = policy_of()
    plain.load_state_dict({n: local_tensor(p) for n, p in shards_of(policy).items()}, strict=False)
    with torch.no_grad():
        assert torch.equal(policy(ROWS).logp, plain(ROWS).logp)
    assert not torch.equal(before, plain(ROWS).logp)


def test_a_reference_that_moves_is_read_anew(mesh):
    policy, held = sharded_policy(mesh), policy_of(seed=1).requires_grad_(False)
    shard_model(held, mesh=mesh, compute=torch.float32)
    moving = MovingReference(policy, ReferenceModel(held), every=1, share=1.0)
    with torch.no_grad():
        held(ROWS)
        moving.after_step(1)
        assert torch.equal(held(ROWS).logp, policy(ROWS).logp)
    assert moving.layouts().keys() == moving.tensors().keys()
    assert all(layout.is_whole for layout in moving.layouts().values())


def test_shards_are_copied_between_models(mesh):
    policy, held = sharded_policy(mesh), policy_of(seed=1).requires_grad_(False)
    shard_model(held, mesh=mesh, compute=torch.float32)
    with torch.no_grad():
        assert not torch.equal(held(ROWS).logp, policy(ROWS).logp)
        copy_shards(held, policy)
        assert torch.equal(held(ROWS).logp, policy(ROWS).logp)
    wider = policy_of(vocab_size=98)
    with pytest.raises(ValueError, match=r"parameters differ: .*embed_tokens"):
        copy_shards(wider, policy)


def test_gathered_weights_are_whole_inside_and_shards_outside(mesh):
    policy = sharded_policy(mesh)
    for _ in range(2):
        with torch.no_grad(), gathered(policy):
            assert not any(isinstance(p, DTensor) for p in policy.parameters())
            policy(ROWS)
            assert not any(isinstance(p, DTensor) for p in policy.parameters())
        assert all(isinstance(p, DTensor) for p in policy.parameters())
    policy(ROWS).logp.sum().backward()
    assert all(p.grad is not None for p in policy.parameters())


def test_gathered_leaves_a_model_that_is_not_sharded_alone():
    policy = policy_of()
    with gathered(policy):
        policy(ROWS)


def test_a_value_model_inside_a_policy_is_gathered_by_itself(mesh):
    policy = sharded_policy(mesh)
    own = units(policy)
    assert len(own) == 3
    assert own[0] is policy
    policy.value_model = nn.ModuleDict({"model": sharded_policy(mesh)})
    assert units(policy) == own
    with gathered(policy):
        assert all(isinstance(p, DTensor) for p in policy.value_model.parameters())


def test_the_probe_allows_the_rounding_of_the_type_that_is_gathered(mesh):
    """The shards are fp32, and the passes bf16."""
    policy = sharded_policy(mesh, torch.bfloat16)
    assert policy.dtype == torch.bfloat16
    assert tolerance(policy) == tolerance(policy_of().bfloat16()) > tolerance(policy_of())
    probe(policy, may_fall_back=False)
    assert policy.flat


@pytest.mark.parametrize(("compute", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_bytes_of_a_rollout_are_those_of_all_weights(mesh, compute, size):
    policy = sharded_policy(mesh, compute)
    count = sum(p.numel() for p in policy.model.parameters())
    assert gathered_bytes(policy, compute) == size * count


def test_the_gradient_norm_is_over_sharded_and_other_parameters(mesh):
    policy, plain = sharded_policy(mesh), policy_of()
    for model in (policy, plain):
        model.head = nn.Linear(3, 2)
        nn.init.ones_(model.head.weight)
        (model(ROWS).logp.sum() + model.head(torch.ones(3)).sum()).backward()
    optimizer = MasterAdamW(policy, TrainConfig(), torch.float32, mesh)
    policy(ROWS).logp.sum().backward()
    policy.head(torch.ones(3)).sum().backward()
    expected = torch.nn.utils.get_total_norm([p.grad for p in plain.parameters()])
    assert_close(optimizer.gradient_norm(), expected)


def test_whole_tensors_are_gathered_of_other_values(mesh):
    weight = sharded_policy(mesh).model.get_input_embeddings().weight
    assert torch.equal(gather_whole(weight, torch.ones(97, 32)), torch.ones(97, 32))
    plain = torch.zeros(2)
    assert gather_whole(plain, plain) is plain


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_the_hash_of_weights_is_that_of_the_plain_model(mesh, compute):
    """Stored log-probs of a run on one process serve a sharded run too."""
    plain, policy = policy_of().to(compute), sharded_policy(mesh, compute)
    assert hash_weights(policy) == hash_weights(plain)
    with torch.no_grad():
        policy(ROWS)  # the root's weights are gathered now
    assert hash_weights(policy) == hash_weights(plain)
    assert hash_weights(policy_of(seed=1).to(compute)) != hash_weights(plain)


@pytest.mark.parametrize(("collective", "calls"), [(False, 0), (True, 1)])
def test_a_sharded_reward_model_is_called_without_samples_too(collective, calls):
    """Ranks that have samples wait for it."""
    called = []

    def scorer(samples):
        called.append(samples)
        return []

    term = WeightedScorer("score", "reward.model: x", 1.0, scorer, collective)
    assert term.score(Samples([], [], [], [])).tolist() == []
    assert len(called) == calls


def sharded(ranks):
    object.__setattr__(ranks, "sharded", True)
    return ranks


def batches_of(lengths, **columns):
    return [
        replace(rows, token_columns={n: torch.zeros(len(rows.scored)) for n in columns})
        for rows in (random_rows([length], seed=length) for length in lengths)
    ]


def test_ranks_get_equally_many_batches_in_one_order():
    """Rank 0 has three of one kind and rank 1 one of another kind; rank 2 has none."""
    own = [batches_of([4, 5, 6]), batches_of([7], ptx=True), []]
    found = on_ranks(3, lambda ranks: equal_passes(own[ranks.rank], sharded(ranks)))
    kinds = [[sorted(rows.token_columns) for rows in batches] for batches in found]
    assert kinds == [[["ptx"], [], [], []]] * 3 or kinds == [[[], [], [], ["ptx"]]] * 3
    assert [sum(not rows.is_filler for rows in batches) for batches in found] == [3, 1, 0]
    kept = [rows for rows in found[0] if not rows.is_filler]
    assert [len(rows.tokens) for rows in kept] == [4, 5, 6]


@pytest.mark.parametrize("seed", range(5))
def test_random_numbers_of_batches(seed):
    draw = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 5, (4,), generator=draw).tolist()
    counts[seed % 4] += 1
    own = [batches_of(range(2, 2 + count)) for count in counts]
    found = on_ranks(4, lambda ranks: equal_passes(own[ranks.rank], sharded(ranks)))
    assert {len(batches) for batches in found} == {max(counts)}
    assert [sum(not rows.is_filler for rows in batches) for batches in found] == counts


def test_nobody_has_a_batch():
    assert on_ranks(2, lambda ranks: equal_passes([], sharded(ranks))) == [[], []]


def test_a_rank_without_batches_computes_its_fillers_on_its_device():
    own = [[ROWS], []]
    found = on_ranks(2, lambda ranks: equal_passes(own[ranks.rank], sharded(ranks), "meta"))
    assert [[rows.is_filler for rows in batches] for batches in found] == [[False], [True]]
    assert found[1][0].tokens.device.type == "meta"


def test_batches_stay_as_they_are_where_nothing_is_sharded():
    own = batches_of([4, 5])
    assert on_ranks(2, lambda ranks: equal_passes(own[ranks.rank :], ranks))[1] == own[1:]


def test_a_filler_is_the_smallest_example_of_the_rank():
    rows = rows_of([1, 2, 3], [4, 5])
    own = [[rows, random_rows([9])], [random_rows([8]), rows, rows]]
    found = on_ranks(2, lambda ranks: equal_passes(own[ranks.rank], sharded(ranks)))
    assert found[0][2].is_filler
    assert found[0][2].tokens.tolist() == [1, 2, 3]
