from dataclasses import dataclass

import pytest
import torch

from rlhf_cli.distributed.ranks import SINGLE_PROCESS, Ranks
from rlhf_cli.errors import CheckpointError
from rlhf_cli.train import update
from rlhf_cli.train.config import TrainConfig
from rlhf_cli.train.metrics import Meter
from rlhf_cli.train.optim import MasterAdamW
from rlhf_cli.train.stopping import StopRequest
from rlhf_cli.train.update import all_reduce_gradients, require_equal_weights


@dataclass(frozen=True)
class Twins(Ranks):
    """Two ranks of which the other one always says the same, changed by `other`."""

    world_size: int = 2
    other: object = staticmethod(lambda value: value)

    def all_reduce(self, tensor):
        tensor += self.other(tensor.clone())

    def all_gather_json(self, value):
        return [value, self.other(value)]


def optimizer(compute=torch.float32):
    module = torch.nn.ParameterDict(
        {name: torch.nn.Parameter(torch.full((2, 3), 1.0)) for name in ("a", "b", "never")}
    )
    module["frozen"] = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16), requires_grad=False)
    made = MasterAdamW(module, TrainConfig(), compute)
    return module, made


@pytest.mark.parametrize("bucket", [1, 30, 2**20])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_gradients_of_trained_parameters_are_added(monkeypatch, bucket, compute):
    monkeypatch.setattr(update, "BUCKET_BYTES", bucket)
    module, made = optimizer(compute)
    (2 * module["a"].sum() + 3 * module["b"].t().sum()).backward()
    assert all_reduce_gradients(made, torch.tensor(0.5), Twins()) == 1.0
    gradients = made.gradients()
    assert {name: float(grad.mean()) for name, grad in gradients.items()} == {"a": 4.0, "b": 6.0}
    assert {grad.dtype for grad in gradients.values()} == {torch.float32}


def test_a_rank_without_rows_gets_the_others_gradients():
    class Other(Twins):
        """The other rank's loss is 7, and only its `b` took part, with a gradient of 1."""

        def all_reduce(self, tensor):
            tensor += torch.tensor([7.0, 0.0, 1.0, 0.0]) if tensor.ndim == 1 else 1.0

    _, made = optimizer()
    assert all_reduce_gradients(made, torch.tensor(0.0), Other()) == 7.0
    assert {name: float(grad.mean()) for name, grad in made.gradients().items()} == {"b": 1.0}


def test_alone_nothing_is_touched():
    _, made = optimizer()
    loss = torch.tensor(2.0)
    assert all_reduce_gradients(made, loss, SINGLE_PROCESS) is loss
    assert made.gradients() == {}


def test_equal_weights_pass_and_a_difference_is_named():
    _, made = optimizer()
    require_equal_weights(made, Twins(), 3)
    differ = Twins(other=lambda sums: [sums[0], _changed(sums[1]), sums[2]])
    with pytest.raises(CheckpointError, match=r"rank 1 are not .* after step 3 \(1 of 3 .*, b "):
        require_equal_weights(made, differ, 3)


def test_ranks_with_other_parts_of_a_parameter_are_not_compared():
    _, made = optimizer()
    elsewhere = Twins(other=lambda sums: [(2, 1, value + 1) for _, _, value in sums])
    require_equal_weights(made, elsewhere, 3)


def _changed(part):
    start, rows, value = part
    return (start, rows, value + 1)


def test_metrics_of_all_ranks_are_merged_when_read():
    meter = Meter(Twins(other=lambda sums: {"margin": [6.0, 1], "only_there": [5.0, 5]}))
    meter.add({"margin": (torch.tensor(2.0), 3), "loss": (torch.tensor(4.0), 1)})
    assert meter.read() == {"margin": 2.0, "loss": 4.0, "only_there": 1.0}
    assert meter.sums == {}


def test_all_ranks_stop_where_one_was_asked_to():
    stop = StopRequest()
    assert stop.agreed(Twins()) == ""
    asked = Twins(other=lambda said: said + 1 if torch.is_tensor(said) else "SIGTERM")
    assert stop.agreed(asked) == "SIGTERM"


def test_blocks_are_contiguous_and_leave_nothing_out():
    for count, size in ((8, 8), (9, 4), (2, 3), (0, 2)):
        blocks = [list(Ranks(rank, size).shard(count)) for rank in range(size)]
        assert [place for block in blocks for place in block] == list(range(count))
        assert max(map(len, blocks)) - min(map(len, blocks)) <= 1
